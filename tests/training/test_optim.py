from types import SimpleNamespace

import pytest
import torch

from et.training.optim import build_optimizer, centralize, configure, warmup_cosine
from et.utils.errors import UserError
from tests.configs import compose_config


def test_warmup_cosine_passes_through_its_three_rates():
    def rate(step):
        return warmup_cosine(step, total=100, warmup=20, peak_lr=1.0, start_lr=0.1, end_lr=0.01)

    assert rate(0) == pytest.approx(0.1) and rate(10) == pytest.approx(0.55) and rate(20) == pytest.approx(1.0)
    assert rate(60) == pytest.approx((1 + 0.01) / 2) and rate(100) == rate(120) == pytest.approx(0.01)
    assert all(rate(step) > rate(step + 1) for step in range(20, 99))


def test_centralize_removes_the_mean_of_every_output():
    gradient = torch.randn(4, 3, 5) + 2
    vector = torch.randn(6)
    kept = vector.clone()
    centralize(gradient)
    centralize(vector)
    torch.testing.assert_close(gradient.mean(dim=(1, 2)), torch.zeros(4), atol=1e-6, rtol=0)
    assert torch.equal(vector, kept)


def build(*overrides):
    cfg = compose_config("experiment=imagenet_inpainting", *overrides).optim
    module = torch.nn.Linear(3, 2)
    trainer = SimpleNamespace(estimated_stepping_batches=1000, max_epochs=100)
    return configure(cfg, module, trainer), module


def test_table_4_optimizer_and_schedule():
    found, _ = build()
    group = found["optimizer"].param_groups[0]
    assert isinstance(found["optimizer"], torch.optim.AdamW)
    assert group["betas"] == (0.9, 0.99) and group["weight_decay"] == 0.05 and group["initial_lr"] == 5e-4
    factor = found["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert factor(0) * 5e-4 == pytest.approx(5e-7) and factor(20) == 1.0 and factor(1000) * 5e-4 == pytest.approx(5e-7)
    assert factor(510) == pytest.approx(0.5 * (1 + 1e-3), rel=1e-3)


def test_adam_at_a_constant_rate():
    found, _ = build("optim=adam", "optim.schedule.name=constant")
    assert set(found) == {"optimizer"}


def test_adam_down_a_cosine_to_0():
    found, _ = build("optim=adam", "optim.schedule.name=cosine")
    factor = found["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert [factor(step) for step in (0, 500, 1000)] == pytest.approx([1.0, 0.5, 0.0])


def test_a_layer_of_one_input_keeps_its_gradient():
    gradient = torch.randn(4, 1)
    kept = gradient.clone()
    centralize(gradient)
    assert torch.equal(gradient, kept)


def test_axes_that_are_asked_for_are_taken_whatever_their_extent():
    """As optax does, under which a layer of one output never learns."""
    gradient = torch.randn(1, 4)
    centralize(gradient, (0,))
    assert torch.equal(gradient, torch.zeros(1, 4))


def test_other_axes_on_request():
    gradient, vector = torch.randn(4, 3) + 2, torch.randn(6) + 2
    centralize(gradient, (0,))
    centralize(vector, (0,))
    torch.testing.assert_close(gradient.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert abs(vector.mean()) < 1e-6


def test_a_warm_up_without_end_is_told():
    with pytest.warns(UserWarning, match="still warming up"):
        build("optim.schedule.warmup_epochs=100")


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"optim\.schedule\.name"):
        build("optim.schedule.name=linear")


@pytest.mark.parametrize(
    ("key", "advice"), [("weigth_decay", r"did you mean optim\.optimizer\.weight_decay"), ("foo", "it takes lr, betas")]
)
def test_a_key_that_the_optimizer_does_not_take_is_named(key, advice):
    cfg = compose_config("experiment=demo_graphs", f"+optim.optimizer.{key}=0.1").optim.optimizer
    with pytest.raises(UserError, match=rf"optim\.optimizer\.{key}: AdamW takes no {key}; .*{advice}"):
        build_optimizer(cfg, [torch.nn.Parameter(torch.zeros(1))])


@pytest.mark.parametrize(
    ("override", "message"),
    (
        ("optim.optimizer.lr=-1", "AdamW refuses its settings: Invalid learning rate"),
        ("optim.optimizer.weight_decay=-1", "AdamW refuses its settings: Invalid weight_decay"),
    ),
)
def test_a_value_that_cannot_train_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        build(override)
