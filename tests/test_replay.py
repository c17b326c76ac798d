'''Maps that are replayed from a recording.'''
import re
import warnings
from functools import partial

import pytest
import torch
from helpers import assert_close, random_image
from small_models import Small
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient
from zennit.canonizers import NamedMergeBatchNorm
from zennit.composites import EpsilonGammaBox, EpsilonPlus, GuidedBackprop
from zennit.core import Composite
from zennit.rules import Gamma

from zennit_dc import Balanced, Logits, Relative, Scaling, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import NotRecorded, Recorded, contrast
from zennit_dc.attribution.graphs import Replay
from zennit_dc.rules import SplitEpsilon


COMPOSITES = {
    'none': lambda: None,
    'SplitGrad': SplitGrad,
    'SplitGrad, fixed alpha': lambda: SplitGrad(.3, '-h', recentering=Scaling()),
    'SplitGrad at a layer': lambda: SplitGrad(Balanced(.2), '+g', 'conv2'),
    'SplitGrad without sums': lambda: SplitGrad(.5, 'g', recentering=None),
    'SplitLRP': SplitLRP,
    'SplitLRP, convex pooling': lambda: SplitLRP(1e-3, pooling='convex', recentering=Relative(.3)),
    'SplitLRP at a layer': lambda: SplitLRP(layer='pool', stream='positive'),
    'SplitCAM': lambda: SplitCAM('norm'),
    'EpsilonPlus': EpsilonPlus,
    'EpsilonGammaBox': lambda: EpsilonGammaBox(low=-3., high=3.),
    'GuidedBackprop': GuidedBackprop,
}


class Calls(nn.Module):
    '''A function of features, with a layer before and after it.'''
    def __init__(self, function, width=4):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(width, 6), nn.Linear(6, 3), function
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.double().eval()

    def forward(self, x):
        return self.last(F.relu(self.function(self.first(x))))


def image(seed=1, count=3):
    return random_image(count, 2, 4, 4, seed=seed)


def count(recorded):
    '''How many recordings there are.'''
    return sum(isinstance(each, Replay) for each in recorded.recordings.values())


def assert_equal(found, expected):
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two.detach())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('name', COMPOSITES)
def test_a_replay_has_the_bits_of_the_call(name, dtype):
    '''The expected bits are an equal model's: a call of Zennit's rules leaves other parameters, from Zennit 1.0 on.'''
    composite, other = COMPOSITES[name](), COMPOSITES[name]()
    model, recorded = Small().to(dtype), Recorded(Small().to(dtype), composite)
    for seed, unit in (1, 0), (2, 1), (3, 0):
        def relevance(output, unit=unit):
            return output * F.one_hot(torch.tensor(unit), 2)
        input = image(seed).to(dtype)
        found, expected = recorded(input, relevance), Gradient(model, other)(input.clone(), relevance)
        assert_equal(found, expected)
        if getattr(other, 'canonizers', None) and getattr(other.canonizers[-1], 'layer', None):
            assert torch.equal(composite.saliency, other.saliency)
    assert count(recorded) == 1


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
@pytest.mark.parametrize('name', ['none', 'SplitGrad', 'SplitLRP', 'SplitCAM', 'EpsilonPlus'])
def test_backends_of_torch_compile(name, backend):
    model, recorded = Small(), Recorded(Small(), COMPOSITES[name](), backend=backend)
    for seed in 1, 2:
        expected = Gradient(model, COMPOSITES[name]())(image(seed))
        for one, two in zip(recorded(image(seed)), expected):
            assert_close(one, two.detach(), 1e-12)
    assert count(recorded) == 1


def test_relevance_that_chooses_by_values():
    '''It is computed between the forward and the backward part, as always.'''
    model, recorded = Small(), Recorded(Small(), SplitLRP(), contrast(against='likely'))
    for seed in range(4):
        expected = Gradient(model, SplitLRP(), contrast(against='likely'))(image(seed))
        assert_equal(recorded(image(seed)), expected)
    assert count(recorded) == 1


def test_models_that_need_canonizers_and_logits():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)
            self.last = nn.Linear(4, 3)
            self.double().eval()

        def forward(self, x):
            x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
            return self.last(F.gelu(x)).mean(1).softmax(-1)

    model = Logits(Attention(), drop='softmax')
    recorded = Recorded(model, SplitGrad(canonizers='auto'))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for seed in 1, 2:
            input = random_image(2, 5, 4, seed=seed)
            assert_equal(recorded(input), Gradient(model, SplitGrad(canonizers='auto'))(input.clone()))
    assert count(recorded) == 1


def test_within_and_without_a_context():
    model, recorded = Small(), Recorded(Small(), SplitLRP())
    recorded(image())
    with recorded as inside:
        assert_equal(inside(image(2)), Gradient(model, SplitLRP())(image(2)))
    assert_equal(recorded(image(3)), Gradient(model, SplitLRP())(image(3)))
    assert count(recorded) == 1
    assert 'forward' not in recorded.model.__dict__


def changed_parameter(model):
    model.dense.weight.data.mul_(2.)
    with torch.no_grad():
        model.dense.weight.mul_(1.)  # which counts the version


def replaced_parameter(model):
    model.dense.weight = nn.Parameter(model.dense.weight.detach() * 2)


def changed_buffer(model):
    with torch.no_grad():
        model.norm.running_var.mul_(4.)


def changed_attribute(model):
    model.pool.stride = 1
    model.dense = nn.Linear(12, 2).double()


def added_hook(model):
    model.conv2.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize('change', [
    changed_parameter, replaced_parameter, changed_buffer, changed_attribute, added_hook
])
@pytest.mark.parametrize('is_inside', [False, True])
def test_another_state_is_recorded_anew(change, is_inside):
    model = Small()
    recorded = Recorded(model, SplitGrad())
    recorded(image())
    if is_inside and change is not changed_attribute:
        with recorded:
            change(model)
            found = recorded(image(2))
    else:
        change(model)
        found = recorded(image(2))
    assert_equal(found, Gradient(model, SplitGrad())(image(2)))
    assert count(recorded) == 2


class Scaled:
    '''A re-centering with a parameter.'''
    def __init__(self):
        self.factor = 1.

    def __call__(self, difference, stream_sum):
        return difference.abs() + self.factor * (stream_sum - difference.abs())


def changed_recentering(composite):
    composite.canonizers[-1].recentering.factor = .5


def replaced_recentering(composite):
    composite.canonizers[-1].recentering = Scaling()


def changed_rule(composite):
    composite.layer_map[-1][1].epsilon = .3


def added_rule(composite):
    composite.layer_map.insert(0, ((nn.Linear,), SplitEpsilon(.3)))


def changed_readout(composite):
    composite.readout.stream = 'negative'


@pytest.mark.parametrize('change', [
    changed_recentering, replaced_recentering, changed_rule, added_rule, changed_readout
])
def test_another_composite_is_recorded_anew(change):
    model, composites = Small(), [SplitLRP(recentering=Scaled()) for _ in range(2)]
    recorded = Recorded(model, composites[0])
    before = recorded(image(2))[1]
    for composite in composites:
        change(composite)
    found = recorded(image(2))
    assert_equal(found, Gradient(model, composites[1])(image(2)))
    assert not torch.equal(found[1], before) and count(recorded) == 2
    recorded(image(2))
    assert count(recorded) == 2


def test_a_function_with_arguments_is_recorded_anew_as_these_change():
    def shrunk(difference, stream_sum, *, by):
        return torch.lerp(difference.abs(), stream_sum, by['part']) if unset else later

    unset, by = True, {'part': .5}
    model, composite = Small(), SplitLRP(recentering=partial(shrunk, by=by))
    recorded = Recorded(model, composite)
    before = recorded(image(2))[1]
    by['part'] = .9
    found = recorded(image(2))
    assert_equal(found, Gradient(model, composite)(image(2)))
    assert not torch.equal(found[1], before) and count(recorded) == 2
    later = None  # which has no value before


def test_a_canonizer_that_changes_weights_is_recorded_once():
    composite = EpsilonPlus(canonizers=[NamedMergeBatchNorm([(['conv1'], 'norm')])])
    model, recorded = Small(), Recorded(Small(), composite)
    for seed in 1, 2, 3:
        expected = Gradient(model, EpsilonPlus(canonizers=[NamedMergeBatchNorm([(['conv1'], 'norm')])]))(image(seed))
        assert_equal(recorded(image(seed)), expected)
    assert count(recorded) == 1


def test_another_composite_of_zennit_is_recorded_anew():
    model, low = Small(), torch.full((1, 2, 4, 4), -3.).double()
    composite = EpsilonGammaBox(low=low, high=3.)
    recorded = Recorded(model, composite)
    maps = [recorded(image(2))[1]]
    low.mul_(2.)  # which a function of a rule has
    maps.append(recorded(image(2))[1])
    composite.layer_map.insert(0, ((nn.Linear,), Gamma(.5)))
    maps.append(recorded(image(2))[1])
    assert_equal(recorded(image(2))[1:], Gradient(model, composite)(image(2))[1:])
    assert count(recorded) == 3 and not torch.equal(maps[0], maps[1]) and not torch.equal(maps[1], maps[2])


@pytest.mark.parametrize('other', [
    lambda x: x[:2], lambda x: x.float().double().to(memory_format=torch.channels_last)
])
def test_another_kind_of_input_is_recorded_anew(other):
    model = Small()
    recorded = Recorded(model, SplitLRP())
    recorded(image())
    assert_equal(recorded(other(image(2))), Gradient(model, SplitLRP())(other(image(2)).clone()))
    assert count(recorded) == 2


def test_autocast_is_recorded_anew():
    model = Small().float()
    recorded = Recorded(model, SplitGrad())
    recorded(image().float())
    with torch.autocast('cpu', torch.bfloat16):
        found, expected = recorded(image(2).float()), Gradient(model, SplitGrad())(image(2).float())
        assert_equal(recorded(image(2).float()), expected)
    assert_equal(found, expected)
    assert count(recorded) == 2


def test_training_mode_is_refused_as_always():
    recorded = Recorded(Small(), SplitGrad())
    recorded(image())
    recorded.model.train()
    with pytest.raises(RuntimeError, match='training mode'):
        recorded(image())


def test_the_least_recently_used_recording_is_dropped():
    recorded = Recorded(Small(), SplitGrad(), limit=2)
    recorded(image(1, 1)), recorded(image(1, 2))
    with pytest.warns(UserWarning, match='more than 2 kinds'):
        recorded(image(1, 3))
    recorded(image(1, 3)), recorded(image(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        recorded(image(1, 1))  # which is said once
    assert [each[0][0] for each in recorded.recordings] == [2, 1]


def with_numpy(x):
    return x * float(x.detach().numpy().max())


REFUSED = {
    'a way by a value': (lambda x: x * 2 if x.sum() > 0 else x, 'depends on values'),
    'an item': (lambda x: x / x.detach().abs().max().item(), 'depends on values'),
    'numpy': (with_numpy, 'read values in Python'),
    'a mask': (lambda x: torch.cat([x, x.detach()[x.detach() > 1e9].new_zeros(0, 6)]), 'shape that depends on values'),
    'noise': (lambda x: x + 0 * torch.rand(6, dtype=x.dtype), 'random numbers'),
}


@pytest.mark.parametrize('name', REFUSED)
@pytest.mark.parametrize('composite', [lambda: None, SplitGrad])
def test_what_depends_on_values_is_refused(name, composite):
    function, message = REFUSED[name]
    model, input = Calls(function), random_image(2, 4)
    for _ in range(2):
        with pytest.raises(NotRecorded, match=message):
            Recorded(model, composite())(input)
    recorded = Recorded(model, composite(), strict=False)
    for seed in 1, 2, 3:
        input = random_image(2, 4, seed=seed)
        assert_equal(recorded(input), Gradient(model, composite())(input.clone()))
    assert count(recorded) == 0 and re.search(message, recorded.refusal)


def test_what_is_raised_while_a_call_is_traced_is_the_cause_of_the_error():
    model = Calls(None)
    for error, found in (KeyError('first'), NotRecorded), (MemoryError(), MemoryError):
        calls = []

        def fails(x, error=error, calls=calls):
            calls.append(x)
            if len(calls) == 2:  # the first one is computed as always
                raise error
            return x

        model.function = fails
        with pytest.raises(found) as caught:
            Recorded(model)(random_image(2, 4))
        assert error in (caught.value, caught.value.__cause__)


def test_patience():
    recorded = Recorded(Small(), SplitGrad(), patience=2)
    for number in range(4):
        assert_equal(recorded(image(number)), Gradient(recorded.model, SplitGrad())(image(number)))
        assert count(recorded) == (number >= 2)


@pytest.mark.parametrize('name', ['SplitGrad', 'SplitLRP', 'SplitGrad at a layer'])
def test_maps_that_are_to_be_checked_are_computed_as_always(name):
    model = Small()
    recorded = Recorded(model, COMPOSITES[name]())
    recorded(image())
    broken = image(2)
    broken[0, 0, 0, 0] = torch.nan
    for input in broken, image(2) * 1e300:
        kinds = []
        for attributor in recorded, Gradient(model, COMPOSITES[name]()):
            try:
                attributor(input.clone())
                kinds.append(None)
            except FloatingPointError as error:
                kinds.append(str(error))
        assert kinds[0] == kinds[1] and (kinds[0] is not None or input is not broken)
    found, expected = (attributor(image(2) * 0) for attributor in (recorded, Gradient(model, COMPOSITES[name]())))
    assert_equal(found, expected)


def test_a_map_that_is_zero_as_weights_are():
    recorded = Recorded(Small(), SplitGrad())
    recorded(image())
    recorded.model.dense.weight.data = torch.zeros_like(recorded.model.dense.weight)
    for _ in range(2):
        with pytest.raises(ValueError, match='dense.weight'):
            recorded(image(2))


def test_maps_in_float32_that_rounding_changes():
    '''They are computed again in float64 from the recorded model, too.'''
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    recorded = Recorded(model, SplitLRP())
    for input in torch.randn(20, 1, 4):
        assert_equal(recorded(input), Gradient(model, SplitLRP())(input.clone()))


def test_the_map_is_not_differentiable():
    with pytest.raises(NotImplementedError, match='create_graph'):
        Recorded(Small(), SplitGrad(), create_graph=True)
    recorded = Recorded(Small(), SplitGrad())
    for _ in range(2):
        assert not any(each.requires_grad for each in recorded(image().requires_grad_()))


@pytest.mark.parametrize('limit', [0, 1.5, True, None])
def test_limit_is_a_positive_number(limit):
    with pytest.raises(ValueError, match='limit'):
        Recorded(Small(), limit=limit)


def test_relevance_of_another_shape():
    recorded = Recorded(Small(), SplitGrad())
    recorded(image())
    with pytest.raises(ValueError, match='relevance at the output'):
        recorded(image(), torch.ones(3, 5, dtype=torch.float64))


def test_tokens():
    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.dense, self.last = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Linear(8, 3)
            self.double().eval()

        def forward(self, tokens):
            return self.last(F.relu(self.dense(self.embedding(tokens))).mean(1))

    model, generator = Texts(), torch.Generator().manual_seed(0)
    recorded = Recorded(model, SplitLRP())
    for _ in range(3):
        tokens = torch.randint(20, (2, 5), generator=generator)
        assert_equal(recorded(tokens), Gradient(model, SplitLRP())(tokens.clone()))
    assert count(recorded) == 1


def test_what_depends_on_parameters_alone_is_computed_once_and_within_its_budget():
    large, none = (Recorded(Small(), SplitLRP(), budget=budget) for budget in (2 ** 26, 0))
    for recorded in large, none:
        for number in 1, 2:
            recorded(image(count=number))
            recorded(image(count=number))
    shared = [set(map(id, (value for name, value in each.run.__dict__.items() if name.startswith('folded_'))))
              for each in large.recordings.values()]
    assert shared[0] & shared[1]
    assert not none.folded.tensors
    for _ in range(2):
        assert_equal(large(image(count=1)), none(image(count=1)))


def test_a_composite_that_is_registered_by_hand():
    model = Small()
    with SplitGrad().context(model) as split:
        recorded = Recorded(split)
        for seed in 1, 2, 3:
            found = recorded(image(seed))
            assert_equal(found, Gradient(split)(image(seed)))
    assert count(recorded) == 1
    assert_equal(recorded(image()), Gradient(model)(image()))
    assert count(recorded) == 2


def test_own_composites():
    recorded = Recorded(Small(), Composite(canonizers=[]))
    assert_equal(recorded(image()), Gradient(recorded.model)(image()))


@pytest.mark.parametrize('name', ['SplitGrad', 'SplitLRP', 'EpsilonPlus'])
def test_inactive_composites_are_recorded_by_themselves(name):
    model = Small()
    recorded = Recorded(model, COMPOSITES[name]())
    expected = Gradient(model)(image(2))
    with recorded:
        map = recorded(image(2))[1]
        for _ in range(2):
            with recorded.inactive():
                assert_equal(recorded(image(2)), expected)
            assert_equal(recorded(image(2))[1:], [map])
    assert count(recorded) == 2 and not torch.equal(map, expected[1])
