'''CAFO, CASO and their smooth versions against a literal reference.'''
import gc
import math
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from group_features import NETWORKS, Reference, coordinate_ascent, images, violation
from helpers import assert_close
from PIL import Image
from torch import nn
from torch.nn import functional as F
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from zennit_dc import SplitGrad, SplitLRP
from zennit_dc.attribution import (
    CAFO,
    CASO,
    SmoothCAFO,
    SmoothCASO,
    Sparsity,
    class_relevance,
    contrast,
    cross_entropy,
    hessian,
    shown,
)
from zennit_dc.attribution.loss import MeanCrossEntropy
from zennit_dc.attribution.maximum import second_order, thresholded
from zennit_dc.data.classifiers import IMAGENET_PREPROCESSING


DATA = Path(__file__).parents[2] / 'shared' / 'data'
TARGETS = torch.tensor([0, 3, 6])
DRAWN = pytest.mark.parametrize('name', NETWORKS)


def attribute(attributor, input, targets=TARGETS):
    '''The attribution of classes.'''
    return attributor(input, class_relevance(targets))[1]


def references(name, input, targets=TARGETS):
    '''The literal derivatives of each image.'''
    model = NETWORKS[name]()
    return [Reference(model, input[index:index + 1], int(target)) for index, target in enumerate(targets)]


@DRAWN
@pytest.mark.parametrize('penalty', [0., 1e-3, Sparsity(0.), Sparsity(.5)], ids=str)
def test_cafo_by_its_formula(name, penalty):
    input, attributor = images(), CAFO(NETWORKS[name](), penalty=penalty, signed=True)
    found = attribute(attributor, input)
    for known, delta, lambda1, lambda2 in zip(references(name, input), found, *attributor.solution[:2]):
        expected = known.g.sign() * (known.g.abs() - lambda1).clamp(min=0.) / (2. * lambda2)
        assert_close(delta.flatten(), expected, 1e-12)
        if penalty in (0., Sparsity(0.)):
            assert abs(F.cosine_similarity(delta.flatten(), known.g, 0) - 1.) < 1e-14
    assert torch.equal(attribute(CAFO(NETWORKS[name](), penalty=penalty), input), found.abs())
    assert not attributor.solution.L.any() and not attributor.solution.error_bound.any()


@DRAWN
def test_caso_without_penalty_solves_a_linear_system(name):
    input, attributor = images(), CASO(NETWORKS[name](), penalty=0., tolerance=1e-12, signed=True)
    found = attribute(attributor, input)
    for known, delta, lambda2, largest in zip(references(name, input), found, *attributor.solution[1:3]):
        assert abs(largest - known.L) <= 1e-12 * known.L and abs(lambda2 - 1.1 * known.L / 2.) <= 1e-12 * known.L
        system = 2. * lambda2 * torch.eye(len(known.g), dtype=torch.float64) - known.H
        assert_close(delta.flatten(), torch.linalg.solve(system, known.g), 1e-10)


@DRAWN
@pytest.mark.parametrize('share', [.3, .75, .95])
def test_caso_is_the_maximum(name, share):
    input = images()
    attributor = CASO(NETWORKS[name](), penalty=Sparsity(share), tolerance=1e-11, signed=True)
    found = attribute(attributor, input)
    for index, known in enumerate(references(name, input)):
        lambda1, lambda2, _, bound, _ = (value[index].item() for value in attributor.solution)
        delta = found[index].flatten()
        expected = coordinate_ascent(known.g, known.H, lambda1, lambda2)
        assert_close(delta, expected, 1e-8)
        assert violation(delta, known.g, known.H, lambda1, lambda2) <= 1e-10 * known.g.abs().max()
        assert (delta - expected).norm() <= bound + 1e-13 * expected.norm()
        zeros = (found[index].abs().amax(0) == 0.).sum().item()
        assert abs(zeros - share * 36) <= 1
        shrunk = (known.g.abs() - lambda1).clamp(min=0.)
        assert delta.norm() <= shrunk.norm() / (2. * lambda2 - known.L) * (1. + 1e-12)


@pytest.mark.parametrize('tolerance', [1e-1, 1e-2, 1e-3])
def test_error_is_bounded(tolerance):
    input = images()
    attributor = CASO(NETWORKS['CNN'](), penalty=Sparsity(.6), tolerance=tolerance, signed=True)
    found = attribute(attributor, input)
    for index, known in enumerate(references('CNN', input)):
        lambda1, lambda2, _, bound, steps = (value[index].item() for value in attributor.solution)
        expected = coordinate_ascent(known.g, known.H, lambda1, lambda2)
        assert (found[index].flatten() - expected).norm() <= bound <= tolerance * found[index].norm()
        assert 1 <= steps <= 300


def test_first_step_from_zero_is_cafo():
    input, model = images(), NETWORKS['CNN']()
    loss = MeanCrossEntropy([cross_entropy(model, input, TARGETS)])
    gradient, attributor = loss.gradient(), CAFO(model, signed=True)
    delta, scale = attribute(attributor, input), loss.log_scale.exp()
    curved = loss.product(torch.zeros_like(gradient))
    lambda1 = Sparsity().bounds(gradient).mean(0)
    assert torch.equal(thresholded(gradient + curved, lambda1), delta)
    torch.testing.assert_close(attributor.solution.lambda1, lambda1 * scale, rtol=1e-15, atol=0.)


def test_plain_steps_rise_and_contract():
    known = references('MLP', images())[0]
    lambda2, lambda1 = 1.1 * known.L / 2., .2 * known.g.abs().max().item()
    steps, last = [torch.zeros_like(known.g)], -math.inf
    for _ in range(1000):
        delta = steps[-1]
        objective = (
            known.g @ delta + delta @ known.H @ delta / 2. - lambda1 * delta.abs().sum() - lambda2 * (delta @ delta)
        ).item()
        assert objective >= last - 1e-12 * abs(objective)
        last = objective
        step = thresholded((known.g + known.H @ delta)[None], torch.tensor([lambda1], dtype=torch.float64))[0]
        steps.append(step / (2. * lambda2))
    best = steps.pop()
    assert_close(best, coordinate_ascent(known.g, known.H, lambda1, lambda2), 1e-8)
    errors = torch.stack([(step - best).norm() for step in steps])
    rates = (errors[1:] / errors[:-1])[errors[:-1] > 1e-8 * best.norm()]
    assert len(rates) > 20 and rates.max() <= known.L / (2. * lambda2) * (1. + 1e-6)


@pytest.mark.parametrize('kind', [CAFO, CASO])
def test_all_is_zero_from_the_largest_slope_on(kind):
    input, model = images()[:1], NETWORKS['CNN']()
    largest = references('CNN', input, TARGETS[:1])[0].g.abs().max().item()
    above = kind(model, penalty=largest * (1. + 1e-12))
    assert not attribute(above, input, TARGETS[:1]).any() and not above.solution.error_bound.any()
    assert attribute(kind(model, penalty=.9 * largest), input, TARGETS[:1]).any()


@DRAWN
@pytest.mark.parametrize('kind', [CAFO, CASO])
def test_single_images_and_batches_agree(name, kind):
    input, model = images(), NETWORKS[name]()
    whole = attribute(kind(model), input)
    for index in range(len(input)):
        one = attribute(kind(model), input[index:index + 1], TARGETS[index:index + 1])
        assert_close(one, whole[index:index + 1], 1e-12)


@DRAWN
def test_all_classes_are_all_and_some_are_a_smaller_network(name):
    input, model = images(), NETWORKS[name]()
    assert_close(attribute(CASO(model, classes=7), input), attribute(CASO(model), input), 1e-11)
    for index, target in enumerate(TARGETS.tolist()):
        one = input[index:index + 1]
        kept = sorted({target, *model(one)[0].topk(3).indices.tolist()})
        smaller = nn.Sequential(model, Kept(kept)).eval()
        expected = attribute(CASO(smaller), one, kept.index(target))
        assert_close(attribute(CASO(model, classes=3), input)[index:index + 1], expected, 1e-11)


class Kept(nn.Module):
    '''Some of the outputs, times a factor.'''
    def __init__(self, kept=slice(None), factor=1.):
        super().__init__()
        self.kept, self.factor = kept, factor

    def forward(self, x):
        return self.factor * x[:, self.kept]


@pytest.mark.parametrize('kind', [SmoothCAFO, SmoothCASO])
def test_smooth_versions_are_of_the_mean_loss(kind):
    input, model = images(), NETWORKS['CNN']()
    parameters = {'tolerance': 1e-12} if kind is SmoothCASO else {}
    attributor = kind(model, noise_level=.2, n_iter=4, penalty=Sparsity(.5), signed=True, **parameters)
    torch.manual_seed(3)
    found = attribute(attributor, input)
    torch.manual_seed(3)
    deviation = .2 * (input.amax((1, 2, 3), keepdim=True) - input.amin((1, 2, 3), keepdim=True))
    copies = [*(input + torch.randn_like(input) * deviation for _ in range(3)), input]
    for index, target in enumerate(TARGETS.tolist()):
        known = [Reference(model, copy[index:index + 1], target) for copy in copies]
        g, H = sum(each.g for each in known) / 4, sum(each.H for each in known) / 4
        lambda1, lambda2, largest = (value[index].item() for value in attributor.solution[:3])
        if kind is SmoothCAFO:
            expected = g.sign() * (g.abs() - lambda1).clamp(min=0.) / (2. * lambda2)
        else:
            assert abs(largest - torch.linalg.eigvalsh(H)[-1]) <= 1e-7 * largest
            expected = coordinate_ascent(g, H, lambda1, lambda2)
        assert_close(found[index].flatten(), expected, 1e-8)


@pytest.mark.parametrize('smooth, plain', [(SmoothCAFO, CAFO), (SmoothCASO, CASO)])
def test_one_copy_is_the_plain_version(smooth, plain):
    input, model = images(), NETWORKS['batch norm']()
    assert torch.equal(attribute(smooth(model, n_iter=1), input), attribute(plain(model), input))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kind', [CAFO, CASO, SmoothCAFO, SmoothCASO])
def test_certain_network(kind, dtype):
    model, input = nn.Sequential(NETWORKS['CNN'](), Kept(factor=3e4)).to(dtype).eval(), images().to(dtype)
    target = model(input).argmax(1)
    assert (F.softmax(model(input).double(), 1).amax(1) == 1.).all()
    found = attribute(kind(model, penalty=Sparsity(.5)), input, target)
    assert found.isfinite().all() and found.dtype == dtype
    assert ((found.amax(1) == 0.).flatten(1).sum(1) == 18).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_copies_that_are_certain_of_another_class(dtype):
    model, input = nn.Sequential(NETWORKS['CNN'](), Kept(factor=3e4)).to(dtype).eval(), images().to(dtype)
    target, curvature = model(input).argmax(1), []
    for seed in (0, 1, 2, 3, 20, 51):  # the loss of the last has next to no curvature
        torch.manual_seed(seed)
        attributor = SmoothCASO(model, penalty=Sparsity(.5), n_iter=5)
        found = attribute(attributor, input, target)
        assert found.isfinite().all() and found.flatten(1).any(1).all()
        assert (attributor.solution.steps < 300).all()
        curvature.append(attributor.solution.L / attributor.solution.lambda2)
    curvature = torch.cat(curvature)
    assert ((0. < curvature) & (curvature < 1e-15)).any()


@pytest.mark.parametrize('factor', [1., 10., 60.])
def test_hessian_of_an_unlikely_class(factor):
    input, model = images(), nn.Sequential(NETWORKS['MLP'](), Kept(factor=factor)).eval()
    target, generator = model(input).argmin(1), torch.Generator().manual_seed(0)
    directions = torch.randn(2, *input.shape, dtype=torch.float64, generator=generator)
    whole = hessian(model, input, target)
    loss = cross_entropy(model, input, target)
    products = [(loss.log_scale.exp()[:, None] * loss.product(each).flatten(1)) for each in directions]
    for index in range(len(input)):
        known, (first, second) = Reference(model, input[index:index + 1], int(target[index])), directions[:, index]
        # half of the mean over pairs of classes of the products of their differences, which is exact for all p
        slopes = [known.rows @ each.flatten() for each in (first, second)]
        differences = [each[:, None] - each for each in slopes]
        terms = torch.outer(known.p, known.p) * differences[0] * differences[1] / 2.
        for found in (
            first.flatten() @ products[1][index], second.flatten() @ products[0][index],
            first.flatten() @ whole[index] @ second.flatten()
        ):
            assert (found - terms.sum()).abs() < 1e-11 * terms.abs().sum()


@pytest.mark.parametrize('factor', [.01, 1., 100.])
def test_two_classes_have_one_direction(factor):
    model, input = nn.Sequential(NETWORKS['MLP'](2), Kept(factor=factor)).eval(), images()
    maps = [attribute(kind(model, penalty=0., signed=True), input, [0, 1, 0]) for kind in (CAFO, CASO)]
    maps = [each.flatten(1) / each.abs().amax((1, 2, 3))[:, None] for each in maps]  # by 1 / p, which may be 1e200
    assert (F.cosine_similarity(*maps) > 1. - 1e-12).all()


def test_sparsity_of_flat_inputs_counts_entries():
    model = NETWORKS['MLP']()[1:].eval()
    found = attribute(CASO(model, penalty=Sparsity(.75)), images().flatten(1))
    assert ((found == 0.).sum(1) == 54).all()


def test_offset_of_the_article():
    attributor = CASO(NETWORKS['CNN'](), margin=0., offset=10.)
    attribute(attributor, images())
    torch.testing.assert_close(attributor.solution.lambda2, attributor.solution.L / 2. + 10., rtol=1e-13, atol=0.)
    certain = nn.Sequential(NETWORKS['CNN'](), Kept(factor=3e4)).eval()
    with pytest.raises(ValueError, match='loss is close to zero'):
        attribute(CASO(certain, margin=0., offset=10.), images(), certain(images()).argmax(1))


COMPOSITES = {'SplitGrad': SplitGrad, 'SplitLRP': SplitLRP, 'EpsilonPlus': EpsilonPlus}


@pytest.mark.parametrize('composite', COMPOSITES)
def test_maps_of_a_composite_take_the_place_of_gradients(composite):
    input, model = images(), NETWORKS['CNN']()
    attributor = CASO(model, COMPOSITES[composite](), penalty=0., signed=True, tolerance=1e-12)
    with attributor:
        output, found = attributor(input, class_relevance(TARGETS))
    assert torch.equal(output, model(input)) and attributor.classes == 10
    plain = Gradient(model, COMPOSITES[composite]())
    rows = torch.stack([attribute(plain, input.clone(), each) for each in range(7)], 1)
    for index, (p, target, lambda2) in enumerate(zip(output.softmax(1), TARGETS, attributor.solution.lambda2)):
        each = rows[index].flatten(1)
        g, mean = p @ each - each[target], p @ each
        H = sum(weight * torch.outer(row - mean, row - mean) for weight, row in zip(p, each))
        assert abs(lambda2 - .55 * torch.linalg.eigvalsh(H)[-1]) < 1e-10 * lambda2
        system = 2. * lambda2 * torch.eye(len(g), dtype=torch.float64) - H
        assert_close(found[index].flatten(), torch.linalg.solve(system, g), 1e-9)


def test_other_activations_have_a_gauss_newton_matrix():
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.Tanh(), nn.Linear(9, 4)).double().eval()
    attributor = CASO(smooth)
    with pytest.warns(UserWarning, match='Gauss–Newton'):
        attribute(attributor, images(), 0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        attribute(attributor, images(), 0)  # which was said
        attribute(CAFO(smooth), images(), 0)  # which needs no Hessian
        for name in NETWORKS:
            attribute(CASO(NETWORKS[name](), classes=5), images())


def test_too_few_steps_are_said():
    attributor = CASO(NETWORKS['CNN'](), tolerance=1e-13, steps=3, margin=1e-3)
    with pytest.warns(UserWarning, match='after 3 steps the error'):
        attribute(attributor, images())
    assert (attributor.solution.steps == 3).all()


@pytest.mark.parametrize('kind', [CAFO, CASO, SmoothCAFO, SmoothCASO])
def test_refusals_leave_the_model_as_it_was(kind):
    model, input = NETWORKS['CNN'](), images()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for relevance in (None, torch.zeros(3, 7), torch.full((3, 7), 1 / 7), contrast(0),
                      2. * torch.eye(7)[:3], torch.ones(3, 7), torch.eye(7)[:2]):
        for composite in (None, SplitGrad()):
            with pytest.raises(ValueError, match='the relevance of the output'):
                kind(model, composite)(input, relevance)
    with pytest.raises(RuntimeError, match='training mode'):
        attribute(kind(model.train()), input)
    model.eval()
    with pytest.raises(ValueError, match='share of pixels'):
        kind(model, penalty=Sparsity(1.))
    for wrong in ({'penalty': -1.}, {'classes': 1}, {'penalty': math.nan}, {'penalty': 'l1'}, {'classes': 2.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            kind(model, **wrong)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_refusals_of_parameters():
    model = NETWORKS['CNN']()
    for wrong in ({'margin': 0.}, {'margin': -.1}, {'offset': -1.}, {'tolerance': 0.}, {'steps': 0}, {'krylov': 0}):
        with pytest.raises(ValueError, match='larger'):
            CASO(model, **wrong)
    for wrong in ({'noise_level': -1.}, {'n_iter': 0}):
        with pytest.raises(ValueError, match='noise_level'):
            SmoothCAFO(model, **wrong)
    dead = NETWORKS['MLP']()
    for parameter in dead[1].parameters():
        parameter.data.zero_()
    with pytest.raises(ValueError, match='does not depend on image 0'):
        attribute(CASO(dead), images())
    broken = NETWORKS['MLP']()
    broken[1].weight.data[0] = math.inf
    for kind in (CAFO, CASO):
        with pytest.raises(FloatingPointError, match='not finite'):
            attribute(kind(broken), images())


class Interrupted(nn.Module):
    '''A module whose second call is interrupted.'''
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return x


@pytest.mark.parametrize('kind', [SmoothCAFO, SmoothCASO])
@pytest.mark.parametrize('composite', [None, 'SplitGrad'])
def test_interrupted(kind, composite):
    model = nn.Sequential(NETWORKS['CNN'](), Interrupted()).eval()
    with pytest.raises(KeyboardInterrupt):
        attribute(kind(model, composite and COMPOSITES[composite](), n_iter=5), images())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any('forward' in module.__dict__ for module in model.modules())


def test_graphs_are_freed():
    model, input = NETWORKS['CNN'](), images()
    attributor = CASO(model, classes=None)
    attribute(attributor, input)
    gc.collect()
    before = sum(torch.is_tensor(each) for each in gc.get_objects())
    for _ in range(3):
        attribute(attributor, input)
    gc.collect()
    assert sum(torch.is_tensor(each) for each in gc.get_objects()) <= before


def test_shown():
    maps = torch.zeros(3, 2, 10, 10)
    maps[0, 0] = torch.arange(100.).view(10, 10)
    maps[1, 1, 0, :3] = torch.tensor([-4., 1., 2.])
    found = shown(maps)
    assert found.shape == (3, 10, 10) and found.min() == 0. and not found[2].any()
    # 99 values are not zero, the 99th percentile of which, the second largest, is 98 + 1 in a hundred
    assert found[0, 9, 9] == 1. and abs(found[0, 5, 0] - 50. / 99.) < 1e-6
    torch.testing.assert_close(found[1, 0, :3], torch.tensor([1., .25, .5]))
    with pytest.raises(ValueError, match='percentile'):
        shown(maps, 101.)


def test_no_penalty_at_once():
    loss = MeanCrossEntropy([cross_entropy(NETWORKS['CNN'](), images(), TARGETS)])
    _, solution = second_order(loss, 0., tolerance=1e-9)
    assert (solution.steps == 1).all()  # the Krylov space of seven classes holds the solution


@pytest.fixture(scope='module')
def photographs():
    '''SqueezeNet, and the photographs of a purse and of a basketball.'''
    if not DATA.is_dir():
        pytest.skip('there are no real weights and photographs in ../shared')
    model = torchvision.models.squeezenet1_0()
    model.load_state_dict(torch.load(DATA / 'weights' / 'squeezenet1_0_imagenet.pt', weights_only=True))
    preprocessing = IMAGENET_PREPROCESSING()
    images = {
        name: preprocessing(Image.open(next((DATA / 'imagenet').glob(f'*{name}*'))).convert('RGB'))[None]
        for name in ('purse', 'basketball')
    }
    return model.eval(), images


def cosines(model, image, **parameters):
    '''The cosine of the maps of CAFO and CASO for the predicted class.'''
    maps = [attribute(kind(model, signed=True, **parameters), image, None).flatten() for kind in (CAFO, CASO)]
    return F.cosine_similarity(*maps, 0).item()


def test_squeezenet(photographs):
    model, images = photographs
    loss = cross_entropy(model, images['purse'])
    values = loss.eigenpairs(3)[0][0] * loss.log_scale.exp()
    # of some million pre-activations, a few are so close to zero that another kernel rounds them to the other sign
    assert values.tolist() == pytest.approx([29.45, 18.43, 8.97], rel=.01)
    assert cosines(model, images['purse'], penalty=0.) == pytest.approx(.845, abs=.01)
    assert cosines(model, images['purse'], penalty=Sparsity(.9)) >= .99
    assert cosines(model, images['basketball'], penalty=0.) >= .9999


def test_number_of_passes_on_squeezenet(photographs):
    model, images = photographs
    calls = []
    with model.register_forward_hook(lambda *args: calls.append(1)):
        attribute(CAFO(model), images['purse'], None)
        attributor = CASO(model, tolerance=1e-2)
        attribute(attributor, images['purse'], None)
    assert len(calls) == 2 and attributor.solution.steps <= 20  # and ten products before them
