'''What is read off a pair.'''
from contextlib import nullcontext

import pytest
import torch
from helpers import assert_close, explain, random_image
from small_models import Calling, Calls, with_layers
from torch import nn
from torch.nn import functional as F

from zennit_dc import SplitCAM, SplitGrad, SplitLRP, SplitTensor


def test_control_flow_reads_the_difference():
    class Branching(nn.Module):
        def forward(self, x):
            if x.ndim != 2 or len(x) != 3 or x.size(1) != 4 or x.dtype != torch.float64 or not x.is_floating_point():
                raise ValueError
            return x + x if x.mean() > 0 and (x[0, 0] < 1e9).all() else -x

    x = random_image(3, 4)
    for image in (x - x.mean() + 1, x - x.mean() - 1):
        image.requires_grad_()
        with SplitGrad(.5).context(model := Branching()):
            gradient, = torch.autograd.grad(model(image).sum(), image)
        assert torch.equal(gradient, torch.full_like(image, 1. if image.mean() > 0 else -.5))


@pytest.mark.parametrize('function', [
    lambda x: x * (x > 0), lambda x: x * (x > 0).float(), lambda x: x + torch.sign(x), lambda x: (x >= 0) * x,
])
def test_comparisons_are_no_constants(function):
    model = Calls(function)
    with SplitGrad().context(model), pytest.raises(NotImplementedError, match='comparison'):
        model(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize('function', [
    lambda x: torch.fft.fft(torch.cummax(x, -1).values).real, lambda x: torch.linalg.eigvals(x[..., :4, :4]).real,
])
def test_complex_numbers_without_a_form_are_no_constants(function):
    model = Calls(lambda x: function(x).sum((-2, -1)) + x.sum((-2, -1)))
    with SplitGrad().context(model), pytest.raises(NotImplementedError, match='(cummax|eigvals), called in'):
        model(random_image(1, 3, 8, 8, dtype=torch.float32))


def test_conversions_to_integers_are_read():
    class Binned(nn.Module):
        def forward(self, x):
            counts = torch.bincount(x.flatten().to(torch.long).clamp(0, 3), minlength=4)
            return x.flatten(1) * counts.sum().item()

    image = random_image(2, 4).requires_grad_()
    with SplitGrad(.5).context(model := Binned()):
        gradient, = torch.autograd.grad(model(image).sum(), image)
    assert torch.equal(gradient, torch.full_like(image, 4.))
    for function in (lambda x: x * x.long(), lambda x: x + x.to(torch.int32)):
        with pytest.raises(NotImplementedError, match='a cast to integers'):
            function(2 * SplitTensor.of(torch.ones(2, 3)))
    with pytest.raises(NotImplementedError, match='view.*float16'):
        SplitTensor.of(torch.ones(2, 3)).view(torch.float16)


SEEN = []
LOOKS = {
    'register_hook': lambda h: h.requires_grad and h.register_hook(SEEN.append),
    'retain_grad': lambda h: h.retain_grad(), 'numpy': lambda h: SEEN.append(h.detach().cpu().numpy()),
    'data': lambda h: SEEN.append(h.data), 'the largest': lambda h: SEEN.append(float(h.max())),
    'control flow': lambda h: SEEN.append(1.) if h.max() > 1 else None, 'a deviation': lambda h: h.std().item(),
    'softmax of detached': lambda h: h.detach().softmax(1), 'probabilities': lambda h: h.softmax(1).mean().item(),
    'quantiles': lambda h: h.flatten().quantile(.5).item(), 'a norm': lambda h: torch.linalg.norm(h).item(),
    'a gate': lambda h: torch.sigmoid(h).mean().item(), 'rounding': lambda h: h.round().sum().item(),
    'equality': lambda h: (h == 0).all(), 'places': lambda h: torch.nonzero(h), 'text': lambda h: f'{h.std():.3f}',
}


@pytest.mark.parametrize('composite', [
    SplitGrad, SplitLRP, lambda: SplitCAM('1'), lambda: SplitLRP(layer='0'), lambda: SplitLRP(canonizers='auto'),
])
@pytest.mark.parametrize('name', LOOKS)
def test_a_look_along_the_way_changes_no_map(name, composite):
    torch.manual_seed(0)
    model, image = with_layers(), random_image(2, 3, 8, 8)
    expected = explain(composite(), model, image)
    handle = model[1].register_forward_hook(lambda module, args, output: (LOOKS[name](output), None)[1])
    assert torch.equal(explain(composite(), model, image), expected)
    handle.remove()


def test_what_only_was_to_be_read_is_an_error_where_it_is_used():
    model = with_layers()
    model[1].register_forward_hook(lambda module, args, output: output + output.std())
    with SplitGrad(canonizers=None).context(model), pytest.raises(NotImplementedError, match=r'std'):
        model(random_image(2, 3, 8, 8).requires_grad_())


def test_gradients_that_hooks_see_are_those_of_the_difference():
    model, image = with_layers(), random_image(2, 3, 8, 8).requires_grad_()
    found, kept = [], []
    for split in (False, True):
        handle = model[1].register_forward_hook(lambda module, args, output: [
            output.register_hook(found.append), output.retain_grad(), kept.append(output)].clear())
        with SplitGrad(.5).context(model) if split else nullcontext():
            model(image)[:, 1].sum().backward()
            assert torch.equal(kept[-1].grad, found[-1])
        handle.remove()
    assert_close(found[1], found[0] / 2)


@pytest.mark.parametrize('register', ['register_full_backward_hook', 'register_full_backward_pre_hook'])
def test_backward_hooks_of_modules_see_gradients(register):
    model, image, found = with_layers(), random_image(2, 3, 8, 8).requires_grad_(), []
    expected = explain(SplitLRP(), model, image)
    handle = getattr(model[1], register)(lambda module, *gradients: found.append(gradients))
    torch.autograd.grad(model(image)[:, 1].sum(), image)
    with SplitGrad(.5).context(model):
        torch.autograd.grad(model(image)[:, 1].sum(), image)
    assert torch.equal(explain(SplitLRP(), model, image), expected)
    torch.autograd.grad(model(image)[:, 1].sum(), image)
    own, split, _, again = found
    for one, other in zip(own, split):
        assert_close(other[0], one[0] / 2)
    assert torch.equal(again[0][0], own[0][0])
    handle.remove()
    assert not model[1]._backward_hooks and not model[1]._backward_pre_hooks


@pytest.mark.parametrize('register', ['register_full_backward_hook', 'register_full_backward_pre_hook'])
@pytest.mark.parametrize('stays', [False, True])
def test_backward_hooks_that_are_added_in_a_context(register, stays):
    model, image, found = with_layers(), random_image(2, 3, 8, 8).requires_grad_(), []
    with SplitGrad(.5).context(model):
        map, = torch.autograd.grad(model(image)[:, 1].sum(), image)
        handle = getattr(model[1], register)(lambda module, *gradients: found.append(gradients))
        again, = torch.autograd.grad(model(image)[:, 1].sum(), image)
        if not stays:
            handle.remove()
        torch.autograd.grad(model(image)[:, 1].sum(), image)
    assert torch.equal(map, again) and len(found) == 1 + stays
    torch.autograd.grad(model(image)[:, 1].sum(), image)
    assert len(found) == 1 + 2 * stays
    if stays:
        assert_close(found[0][0][0], found[2][0][0] / 2)
        handle.remove()
    assert not model[1]._backward_hooks and not model[1]._backward_pre_hooks
    assert not model[1]._forward_hooks and not model[1]._forward_pre_hooks


@pytest.mark.parametrize('register', ['register_module_full_backward_hook', 'register_module_full_backward_pre_hook'])
def test_backward_hooks_of_all_modules_are_refused(register):
    model, image = with_layers(), random_image(2, 3, 8, 8)
    handle = getattr(nn.modules.module, register)(lambda *arguments: None)
    try:
        with SplitGrad().context(model), pytest.raises(NotImplementedError, match='for all modules.*remove it'):
            model(image)
    finally:
        handle.remove()


def test_a_hook_that_changes_gradients_is_an_error():
    model, image = with_layers(), random_image(2, 3, 8, 8).requires_grad_()
    model[1].register_full_backward_hook(lambda module, inputs, outputs: (2 * inputs[0],))
    with SplitGrad().context(model), pytest.raises(RuntimeError, match='changes a gradient'):
        torch.autograd.grad(model(image)[:, 1].sum(), image)


class Masked(nn.Module):
    '''A mean over the tokens that a mask tells, with the mask from the input, or a constant one.'''
    def __init__(self, mask_of, constant=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 8).double(), nn.Linear(8, 3).double()
        self.mask_of, self.constant = mask_of, constant

    def forward(self, x):
        mask = self.mask_of(x) if self.constant is None else self.constant
        h = self.first(x).relu() * mask[..., None]
        return self.last(h.sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.parametrize('mask_of', [
    lambda x: (x.abs().sum(-1) > 0).float(), lambda x: (x.detach().abs().sum(-1) > 0).float(),
    lambda x: (x != 0).any(-1).double(), lambda x: 1. * ~(x == 0).all(-1),
    lambda x: (torch.arange(6) < (x != 0).any(-1).sum(-1)[:, None]).double(),
    lambda x: x.sum(-1).ne(0).to(x.dtype), lambda x: x.abs().sum(-1).sign(),
])
@pytest.mark.parametrize('composite', [SplitGrad, SplitLRP])
def test_masks_of_the_input_are_constants(mask_of, composite):
    x = random_image(2, 6, 5)
    x[0, 4:] = 0.
    model = Masked(mask_of)
    expected = explain(composite(), Masked(mask_of, mask_of(x).double()), x, 1)
    assert_close(explain(composite(), model, x, 1), expected)


@pytest.mark.parametrize('fill', [
    lambda x: torch.where(torch.isnan(x), torch.zeros_like(x), x), lambda x: torch.nan_to_num(x),
    lambda x: x.masked_fill(x.isnan(), 0.), lambda x: x.clone().masked_fill_(~x.isfinite(), 0.),
])
def test_missing_values_are_imputed(fill):
    x = random_image(2, 4)
    x[0, 1] = torch.nan
    model = Calling(lambda x: F.linear(fill(x), random_image(3, 4)))
    found = explain(SplitGrad(.5), model, x, 1)
    assert_close(found, random_image(3, 4)[1].expand(2, 4) / 2 * ~x.isnan())


def test_values_of_the_input_that_mean_nothing_are_left_out():
    x = random_image(2, 4)
    x[1, 2] = -999.
    model = Calling(lambda x: F.linear(x * (x > -900), random_image(3, 4)))
    assert_close(explain(SplitGrad(.5), model, x, 1), random_image(3, 4)[1].expand(2, 4) / 2 * (x > -900))
