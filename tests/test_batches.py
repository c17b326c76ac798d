'''Batches of gradients and transforms of functions, which are refused by name.'''
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian

from zennit_dc import SplitGrad, SplitLRP


def small_model():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


def batched(split, x):
    x = x.clone().requires_grad_()
    output = split(x)
    return torch.autograd.grad(output, x, torch.eye(3)[:, None], is_grads_batched=True)


def mapped(split, x):
    x = x.clone().requires_grad_()
    output = split(x)
    gradient = partial(torch.autograd.grad, output, x, retain_graph=True)
    return torch.func.vmap(lambda seed: gradient(seed)[0])(torch.eye(3)[:, None])


def dual(split, x):
    with forward_ad.dual_level():
        return split(forward_ad.make_dual(x, torch.ones_like(x)))


CALLS = {
    'jacobian': lambda split, x: jacobian(split, x, vectorize=True),
    'forward jacobian': lambda split, x: jacobian(split, x, vectorize=True, strategy='forward-mode'),
    'batched': batched,
    'mapped': mapped,
    'dual': dual,
    'jacrev': lambda split, x: torch.func.jacrev(split)(x),
    'jacfwd': lambda split, x: torch.func.jacfwd(split)(x),
    'grad': lambda split, x: torch.func.grad(lambda x: split(x).sum())(x),
    'vmap': lambda split, x: torch.func.vmap(split)(x[None]),
    'jvp': lambda split, x: torch.func.jvp(split, (x,), (x,)),
}


@pytest.mark.parametrize('composite', [SplitGrad, SplitLRP, partial(SplitGrad, layer='0')])
@pytest.mark.parametrize('name', CALLS)
def test_the_way_out_is_named(composite, name):
    model, x = small_model(), torch.randn(1, 1, 4, 4)
    refused = pytest.raises(NotImplementedError, match='one output after the other')
    with composite().context(model) as split, refused:
        CALLS[name](split, x)


def one_by_one(split, x):
    x = x.clone().requires_grad_()
    return torch.cat([torch.autograd.grad(split(x), x, seed[None])[0] for seed in torch.eye(3, dtype=x.dtype)])


@pytest.mark.parametrize('composite', [SplitGrad, SplitLRP])
def test_the_way_out_works_after_an_error(composite):
    model, x = small_model().double(), torch.randn(1, 1, 4, 4, dtype=torch.double)
    with composite().context(model) as split:
        for name in ('jacobian', 'jacrev', 'dual'):
            with pytest.raises(NotImplementedError, match='vectorize=False'):
                CALLS[name](split, x)
        torch.testing.assert_close(jacobian(split, x)[0, :, 0], one_by_one(split, x))


@pytest.mark.parametrize('name', CALLS)
def test_plain_model_is_as_it_was(name):
    model, x = small_model(), torch.randn(1, 1, 4, 4)
    with SplitGrad().context(model):
        pass
    CALLS[name](model, x)
