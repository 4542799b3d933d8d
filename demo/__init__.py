"""The main job on the sample studies, from images and notes to a report that can be looked at."""
