'''Normalization with constant statistics, and division by pairs.'''
import pytest
import torch
from helpers import assert_close, explain, random_image
from jacobians import IMAGE, jacobian, require_relevance, require_sensitivities, require_streams
from small_models import Calling
from torch.nn import functional as F

from zennit_dc import DetachedStatistics, SplitGrad, SplitLRP


WEIGHT, BIAS = random_image(4, seed=5), random_image(4, seed=6)
CHANNELS = WEIGHT[:, None, None], BIAS[:, None, None]
X = random_image(*IMAGE)
TOKENS = 2, 3, 4
T = random_image(*TOKENS)


def moments(groups, x):
    '''The mean of each group of channels, and the inverse of its standard deviation.'''
    rows = x.reshape(len(x), groups, -1)
    wide = lambda each: each.repeat_interleave(x.shape[1] // groups, 1)[..., None, None]  # noqa: E731
    return wide(rows.mean(-1)), wide((rows.var(-1, unbiased=False) + 1e-5) ** -.5)


def responses(x):
    '''The denominators of local response normalization, one after the other.'''
    squares = torch.stack([x[:, max(place - 1, 0):place + 2].square().sum(1) for place in range(x.shape[1])], 1)
    return (2. + .1 * squares / 3) ** .75


def root(x):
    return torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6)


# each function, and the affine one that it is with the statistics of this input
NORMS = {
    'group_norm': (IMAGE, lambda x: F.group_norm(x, 2, WEIGHT, BIAS),
                   lambda x: (x - moments(2, x)[0]) * moments(2, X)[1] * CHANNELS[0] + CHANNELS[1]),
    'group_norm of one group': (IMAGE, lambda x: F.group_norm(x, 1), lambda x: (
        x - moments(1, x)[0]) * moments(1, X)[1]),
    'group_norm of vectors': ((2, 4), lambda x: F.group_norm(x, 2), lambda x: (
        x - moments(2, x)[0][..., 0, 0]) * moments(2, random_image(2, 4))[1][..., 0, 0]),
    'instance_norm': (IMAGE, lambda x: F.instance_norm(x, weight=WEIGHT, bias=BIAS),
                      lambda x: (x - moments(4, x)[0]) * moments(4, X)[1] * CHANNELS[0] + CHANNELS[1]),
    'instance_norm of running statistics': (
        IMAGE, lambda x: F.instance_norm(x, BIAS, WEIGHT.abs(), use_input_stats=False),
        lambda x: (x - CHANNELS[1]) / (CHANNELS[0].abs() + 1e-5).sqrt()
    ),
    'rms_norm': (TOKENS, lambda x: F.rms_norm(x, [4], WEIGHT, 1e-6), lambda x: x / root(T) * WEIGHT),
    'rms_norm of a default': (TOKENS, lambda x: F.rms_norm(x, [4]), lambda x: x / T.square().mean(
        -1, keepdim=True).sqrt()),
    'local_response_norm': (IMAGE, lambda x: F.local_response_norm(x, 3, .1, .75, 2.), lambda x: x / responses(X)),
    'norm': (IMAGE, lambda x: x / x.norm(p=2, dim=(2, 3), keepdim=True),
             lambda x: x / X.norm(dim=(2, 3), keepdim=True)),
    'linalg.norm': (TOKENS, lambda x: x * torch.linalg.norm(x, dim=1, keepdim=True), lambda x: x * T.norm(
        dim=1, keepdim=True)),
    'standard deviation': (TOKENS, lambda x: x / x.std(1, keepdim=True), lambda x: x / T.std(1, keepdim=True)),
    'variance': (TOKENS, lambda x: (x - 1) / torch.var_mean(x, 1, keepdim=True)[0], lambda x: (x - 1) / T.var(
        1, keepdim=True)),
    'normalize': (TOKENS, lambda x: F.normalize(x, dim=-1), lambda x: x / T.norm(dim=-1, keepdim=True)),
    'cosine_similarity': (TOKENS, lambda x: F.cosine_similarity(x, WEIGHT.expand(2, 3, 4), -1), lambda x: (
        x / T.norm(dim=-1, keepdim=True) * WEIGHT / WEIGHT.norm()).sum(-1)),
    'reciprocal': (TOKENS, lambda x: x * (1 / (x.abs().sum(-1, keepdim=True) + 1)),
                   lambda x: x / (T.abs().sum(-1, keepdim=True) + 1)),
    'division': (TOKENS, lambda x: -2 * x / x.sum(-1, keepdim=True), lambda x: -2 * x / T.sum(-1, keepdim=True)),
    'division in place': (TOKENS, lambda x: x.clone().div_(x.abs().amax(1, True)), lambda x: x / T.abs().amax(1, True)),
    'square root': (TOKENS, lambda x: x * torch.rsqrt(x.abs().sum(-1, True)),
                    lambda x: x * T.abs().sum(-1, True) ** -.5),
    'powers': (TOKENS, lambda x: x * x.abs().sum(-1, True) ** -.5 / x.square().sum(1, True).pow(.5),
               lambda x: x * T.abs().sum(-1, True) ** -.5 / T.norm(dim=1, keepdim=True)),
    'addcdiv': (TOKENS, lambda x: torch.addcdiv(BIAS, x, x.norm(dim=-1, keepdim=True), value=-2),
                lambda x: BIAS - 2 * x / T.norm(dim=-1, keepdim=True)),
}


@pytest.mark.parametrize('name', NORMS)
@pytest.mark.parametrize('require', [require_streams, require_sensitivities])
def test_statistics_are_constants(name, require):
    require(*NORMS[name], [DetachedStatistics()])


@pytest.mark.parametrize('name', [name for name in NORMS if name.split()[0] in (
    'group_norm', 'instance_norm', 'rms_norm', 'local_response_norm', 'norm'
)])
def test_relevance(name):
    require_relevance(*NORMS[name], [DetachedStatistics()])


def test_root_mean_square_by_hand():
    '''The statistic is a product of pairs, of which only the difference matters.'''
    def function(x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    gradient = explain(SplitGrad(.5, canonizers=[DetachedStatistics()]), Calling(function), T)
    matrix, _ = jacobian(lambda x: x / root(T), TOKENS)
    seed = torch.zeros(TOKENS, dtype=torch.float64)
    seed[:, 2] = 1
    assert_close(gradient, (matrix.T @ seed.flatten()).reshape(TOKENS) / 2)


def test_default_of_rms_norm_in_bfloat16():
    '''Whose smallest number to add is not the one of bfloat16. explain() asserts that the output is bit-identical.'''
    assert explain(SplitGrad(canonizers=[DetachedStatistics()]), Calling(lambda x: F.rms_norm(x, [4])[:, 0]),
                   T.bfloat16()).any()


def test_similarity_of_pairs():
    '''Relevance is conserved, up to the stabilizer.'''
    model, image = Calling(lambda x: F.cosine_similarity(x[:, :1], x[:, 1:], -1)), random_image(2, 3, 16, seed=2)
    total = sum(
        explain(SplitLRP(1e-12, stream, canonizers=[DetachedStatistics()]), model, image, 1).sum((1, 2))
        for stream in ('positive', 'negative')
    )
    torch.testing.assert_close(total, torch.ones(2).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize('name, function', {
    'group_norm': lambda x: F.group_norm(x, 2), 'instance_norm': F.instance_norm,
    'local_response_norm': lambda x: F.local_response_norm(x, 2), 'norm': lambda x: x.norm(),
}.items())
def test_refused_without_the_canonizer(name, function):
    with SplitGrad(canonizers=None).context(model := Calling(function)), pytest.raises(
        NotImplementedError, match=rf'{name}.*DetachedStatistics\(\)'
    ):
        model(X)


def test_statistics_in_training():
    model = Calling(lambda x: F.instance_norm(x, BIAS.clone(), WEIGHT.abs(), use_input_stats=True))
    with SplitGrad(canonizers=[DetachedStatistics()]).context(model), pytest.raises(RuntimeError, match=r'call \.eval'):
        model(X)
