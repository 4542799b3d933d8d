"""From the text of a radiology report to the text that trains."""
