'''Batches of gradients and transforms of functions: the maps are those of a loop, or are refused by name.'''
from functools import partial

import pytest
import torch
from helpers import random_image
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian

from zennit_dc import Balanced, SplitCAM, SplitGrad, SplitLRP


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double().eval()


SEEDS = torch.eye(3, dtype=torch.double)[:, None].expand(3, 2, 3)
IMAGE = random_image(2, 1, 4, 4)


def batched(split, x, **kwargs):
    x = x.clone().requires_grad_()
    output = split(x)
    return torch.autograd.grad(output, x, SEEDS, is_grads_batched=True, **kwargs)[0]


def mapped(split, x):
    x = x.clone().requires_grad_()
    output = split(x)
    gradient = partial(torch.autograd.grad, output, x, retain_graph=True)
    return torch.func.vmap(lambda seed: gradient(seed)[0])(SEEDS)


def dual(split, x):
    with forward_ad.dual_level():
        return split(forward_ad.make_dual(x, torch.ones_like(x)))


def loop(split, x):
    x = x.clone().requires_grad_()
    output = split(x)
    return torch.stack([torch.autograd.grad(output, x, seed, retain_graph=True)[0] for seed in SEEDS])


def of_non_leaf(split, x):
    leaf = (x / 2).requires_grad_()
    return torch.autograd.grad(split(leaf * 2), leaf, SEEDS, is_grads_batched=True)[0] / 2


def score(split, seed, x):
    return (split(x) * seed).sum()


WORKING = {
    'jacobian': lambda split, x: jacobian(lambda x: split(x).sum(0), x, vectorize=True),
    'batched': batched,
    'of what is no leaf': of_non_leaf,
    'jacrev': lambda split, x: torch.func.jacrev(lambda x: split(x).sum(0))(x),
    'jacrev in chunks': lambda split, x: torch.func.jacrev(lambda x: split(x).sum(0), chunk_size=2)(x),
    'vjp': lambda split, x: torch.stack([torch.func.vjp(split, x)[1](seed)[0] for seed in SEEDS]),
    'vjp, mapped': lambda split, x: torch.func.vmap(torch.func.vjp(split, x)[1])(SEEDS)[0],
    'grad': lambda split, x: torch.stack([torch.func.grad(partial(score, split, seed))(x) for seed in SEEDS]),
}


@pytest.mark.parametrize('composite', [
    SplitGrad(), SplitGrad(Balanced(), '+g'), SplitLRP(), SplitGrad(.3, layer='0'), SplitLRP(layer='0'), SplitCAM('0'),
], ids=lambda composite: f'{type(composite).__name__} {composite.canonizers[-1].layer}')
@pytest.mark.parametrize('name', WORKING)
def test_maps_are_those_of_a_loop(composite, name):
    with composite.context(small_model()) as split:
        torch.testing.assert_close(WORKING[name](split, IMAGE), loop(split, IMAGE), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name', ['batched', 'jacobian', 'jacrev'])
def test_the_maps_at_a_layer_are_all_kept(name):
    composite, saliencies = SplitCAM('0'), []
    with composite.context(small_model()) as split:
        for seed in SEEDS:
            x = IMAGE.clone().requires_grad_()
            torch.autograd.grad(split(x), x, seed)
            saliencies.append(composite.saliency)
        WORKING[name](split, IMAGE)
    torch.testing.assert_close(composite.saliency, torch.stack(saliencies), rtol=1e-12, atol=1e-12)


class Several(nn.Module):
    '''A model with several inputs, one of them a mask, and several outputs.'''
    def __init__(self):
        super().__init__()
        self.first, self.other = small_model(), small_model()

    def forward(self, x, y, mask=None):
        return {'both': self.first(x) + self.other(y * mask).relu(), 'one': self.first(x), 'number': 3}


def test_several_inputs_and_outputs():
    mask = torch.arange(4) > 1
    with SplitLRP().context(Several()) as split:
        def function(x, y):
            return split(x, y, mask=mask)['both'].sum(0)

        expected = jacobian(function, (IMAGE, IMAGE + 1.))
        for found in (
            jacobian(function, (IMAGE, IMAGE + 1.), vectorize=True),
            torch.func.jacrev(function, (0, 1))(IMAGE, IMAGE + 1.),
        ):
            for one, other in zip(found, expected):
                assert one.any()
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_several_outputs_at_once_are_refused():
    x, mask = IMAGE.clone().requires_grad_(), torch.ones(4)
    with SplitLRP().context(Several()) as split:
        output = split(x, x, mask=mask)
        with pytest.raises(NotImplementedError, match='from several outputs'):
            torch.autograd.grad([output['both'], output['one']], x, [SEEDS, SEEDS], is_grads_batched=True)


def of_parameters(split, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(split(x), [x, *split.parameters()], SEEDS, is_grads_batched=True)


def of_parameters_alone(split, x):
    output = split(x.clone().requires_grad_())
    return torch.autograd.grad(output, [*split.parameters()], SEEDS, is_grads_batched=True)


def hooked(output):
    output.register_hook(lambda gradient: None)


def seen_by_hooks(split, x):
    handle = split[1].register_forward_hook(lambda module, args, output: hooked(output))
    try:
        return batched(split, x)
    finally:
        handle.remove()


def by_parameters(split, x):
    parameters = dict(split.named_parameters())
    return torch.func.grad(lambda each: torch.func.functional_call(split, each, (x,)).sum())(parameters)


REFUSED = {
    'forward jacobian': lambda split, x: jacobian(split, x, vectorize=True, strategy='forward-mode'),
    'differentiated jacobian': lambda split, x: jacobian(split, x, vectorize=True, create_graph=True),
    'differentiated': partial(batched, create_graph=True),
    'mapped': mapped,
    'dual': dual,
    'jacfwd': lambda split, x: torch.func.jacfwd(split)(x),
    'hessian': lambda split, x: torch.func.hessian(lambda x: split(x).sum())(x),
    'jacrev of jacrev': lambda split, x: torch.func.jacrev(torch.func.jacrev(lambda x: split(x).sum(0)))(x),
    'vmap': lambda split, x: torch.func.vmap(split)(x[None]),
    'jvp': lambda split, x: torch.func.jvp(split, (x,), (x,)),
    'of parameters': of_parameters,
    'of parameters alone': of_parameters_alone,
    'seen by hooks': seen_by_hooks,
    'by parameters': by_parameters,
}


@pytest.mark.parametrize('composite', [SplitGrad, SplitLRP, partial(SplitGrad, layer='0')])
@pytest.mark.parametrize('name', REFUSED)
def test_the_way_out_is_named(composite, name):
    with composite().context(small_model()) as split:
        with pytest.raises(NotImplementedError, match='one output after the other'):
            REFUSED[name](split, IMAGE)
        torch.testing.assert_close(jacobian(lambda x: split(x).sum(0), IMAGE), loop(split, IMAGE))


@pytest.mark.parametrize('name', {**WORKING, **REFUSED})
def test_plain_model_is_as_it_was(name):
    model = small_model()
    with SplitGrad().context(model):
        pass
    {**WORKING, **REFUSED}[name](model, IMAGE)
