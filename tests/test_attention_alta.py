import pytest
import torch
from accelerate.utils import send_to_device
from tiny import make_batch, make_config, randomise
from torch.nn.functional import scaled_dot_product_attention

from modeling_alta import AltaForPreTraining
from modeling_alta.attention_alta import PACKED_ATTENTION, TextPacking, attend, attend_one_by_one, attend_padded


MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])


def random_states(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def gradients_of(model, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_attention_in_half_precision_is_that_of_torch():
    states = random_states(2, 3, 5, 8, dtype=torch.bfloat16)
    mask = torch.tensor([[True, True, False, True, False]])
    expected = scaled_dot_product_attention(*(state.float() for state in states), attn_mask=mask)
    torch.testing.assert_close(attend(*states, mask=mask).float(), expected, rtol=0.02, atol=0.02)


def test_attention_with_dropout_is_right_on_average_and_differs_from_draw_to_draw():
    torch.manual_seed(0)
    states = random_states(1, 1, 4, 8)
    draws = torch.stack([attend(*states, dropout=0.5) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), attend(*states), rtol=0.1, atol=0.1)
    assert not torch.equal(draws[0], draws[1])


def test_attention_over_an_empty_batch_is_empty_and_gives_a_gradient():
    states = [torch.zeros(0, 2, 4, 8, requires_grad=True) for _ in range(3)]
    context = attend(*states)
    context.sum().backward()
    assert context.shape == states[0].grad.shape == (0, 2, 4, 8)


def test_packing_leaves_padding_out_and_can_be_undone():
    packing = TextPacking.from_mask(MASK)
    padded = torch.arange(12.0).reshape(3, 4)
    assert packing.lengths == [3, 1, 4]
    assert packing.pack(padded).tolist() == [0, 1, 2, 4, 8, 9, 10, 11]
    assert torch.equal(packing.unpack(packing.pack(padded)), padded * MASK)


def test_packing_goes_to_another_device_as_a_whole_and_stays_as_it_was():
    packing = TextPacking.from_mask(MASK)
    for sent in (send_to_device(packing, "meta"), send_to_device({"packing": packing}, "meta", True)["packing"]):
        assert sent.slots.is_meta and sent.mask.is_meta and sent.lengths == packing.lengths
        assert (sent.mask.dtype, sent.slots.dtype) == (torch.bool, torch.long)
    assert packing.slots.device.type == packing.mask.device.type == "cpu"


@pytest.mark.parametrize("form", [attend_one_by_one, attend_padded])
def test_packed_tokens_see_the_tokens_of_their_text_alone(form):
    padded = random_states(3, 2, 4, 8)
    packing = TextPacking.from_mask(MASK)
    packed = [packing.pack(state.transpose(1, 2)).transpose(0, 1).unsqueeze(0) for state in padded]
    expected = scaled_dot_product_attention(*padded, attn_mask=MASK[:, None, None].bool())
    got = packing.unpack(form(*packed, packing, 0.0)[0].transpose(0, 1)).transpose(1, 2)
    torch.testing.assert_close(got, expected * MASK[:, None, :, None])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_packed_texts_train_as_padded_ones(tiny_pretraining_model, tiny_batch, implementation):
    model = tiny_pretraining_model
    packed, packed_gradients = model(**tiny_batch), gradients_of(model, tiny_batch)
    model.text_model.set_attn_implementation(implementation)
    padded, padded_gradients = model(**tiny_batch), gradients_of(model, tiny_batch)
    for name in ("masked_report_loss", "local_contrastive_loss", "text_embeds"):
        torch.testing.assert_close(packed[name], padded[name], rtol=1e-5, atol=1e-6)
    for name, gradient in padded_gradients.items():
        assert (packed_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


def test_padding_on_the_left_and_texts_of_one_token_are_packed_too(tiny_base):
    ids = torch.randint(5, 60, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    got = tiny_base(input_ids=ids, attention_mask=mask).text_model_output.last_hidden_state
    tiny_base.text_model.set_attn_implementation("sdpa")
    expected = tiny_base(input_ids=ids, attention_mask=mask).text_model_output.last_hidden_state
    torch.testing.assert_close(got, expected * mask.unsqueeze(-1))


def test_layers_see_no_padding(tiny_base, tiny_batch):
    seen = []
    tiny_base.text_model.encoder.layer[0].register_forward_hook(lambda _, args, output: seen.append(output.shape))
    tiny_base.get_text_features(tiny_batch["input_ids"], tiny_batch["attention_mask"])
    assert seen == [(1, tiny_batch["attention_mask"].sum(), 32)]


def test_dropout_acts_in_packed_texts(tiny_pretraining_model, tiny_batch):
    text_model = tiny_pretraining_model.text_model.train()
    for module in text_model.modules():
        if isinstance(module, torch.nn.Dropout) and module is not text_model.encoder.layer[0].attention.self.dropout:
            module.p = 0.0
    ids, mask = tiny_batch["input_ids"], tiny_batch["attention_mask"]
    assert (
        tiny_pretraining_model.get_text_features(ids, mask) - tiny_pretraining_model.get_text_features(ids, mask)
    ).any()


@pytest.mark.parametrize(("asked", "used"), [(None, PACKED_ATTENTION), ("sdpa", PACKED_ATTENTION), ("eager", "eager")])
def test_the_attention_that_is_asked_for_is_used_and_not_saved(tmp_path, asked, used):
    torch.manual_seed(0)
    AltaForPreTraining(make_config()).save_pretrained(tmp_path)
    assert PACKED_ATTENTION not in (tmp_path / "config.json").read_text()
    model = AltaForPreTraining.from_pretrained(tmp_path, attn_implementation=asked).eval()
    assert model.text_model.config._attn_implementation == used
    assert model(**make_batch()).loss.isfinite()


def test_a_text_tower_alone_takes_padded_texts(tiny_base, tiny_batch):
    ids, mask = tiny_batch["input_ids"], tiny_batch["attention_mask"]
    got = tiny_base.text_model(input_ids=ids, attention_mask=mask).last_hidden_state
    expected = tiny_base(input_ids=ids, attention_mask=mask).text_model_output.last_hidden_state
    torch.testing.assert_close(got * mask.unsqueeze(-1), expected)


def test_bfloat16_autocast_stays_close_to_float32(tiny_batch):
    torch.manual_seed(0)
    model = randomise(AltaForPreTraining(make_config()).eval())
    expected = model(**tiny_batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(**tiny_batch)
    torch.testing.assert_close(got.image_embeds.float(), expected.image_embeds, rtol=0, atol=0.03)
    torch.testing.assert_close(got.masked_report_loss, expected.masked_report_loss, rtol=0.02, atol=0)
