'''The paper's metrics against cases computed by hand and against Quantus' own classes.'''
import copy
import importlib
import sys

import numpy as np
import pytest
import torch
from helpers import DEVICES, random_image


quantus = pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')
from zennit_dc.data.classifiers import load_classifier  # noqa: E402
from zennit_dc.demo import demo_network  # noqa: E402
from zennit_dc.evaluation import metrics  # noqa: E402
from zennit_dc.evaluation.data import Drawings  # noqa: E402
from zennit_dc.evaluation.mosaics import Mosaics, mosaic, mosaic_members, require_any_size  # noqa: E402
from zennit_dc.evaluation.randomisation import randomised, similarities  # noqa: E402


class Linear(torch.nn.Module):
    '''Two classes: the weighted sum of the first channel, and ten times that.'''
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.as_tensor(weight, dtype=torch.float64))

    def forward(self, input):
        score = (input[:, 0] * self.weight).flatten(1).sum(1)
        return torch.stack([score, 10. * score], 1)


def tiny_network(dtype=torch.float64, channels=3):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return torch.nn.Sequential(
            torch.nn.Conv2d(channels, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(inplace=True),
            torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(24, 5),
        ).eval().to(dtype)


def squares(*corners, size=8, side=4):
    '''Masks of a square each, by its upper left corner.'''
    masks = torch.zeros(len(corners), size, size, dtype=torch.bool)
    for mask, (row, column) in zip(masks, corners):
        mask[row:row + side, column:column + side] = True
    return masks


# 4 x 4 pixels 1, 2, ..., 16 with the mean 8.5, of which the weights see the last, and the one before by half
RAMP = torch.arange(1., 17., dtype=torch.float64).view(1, 1, 4, 4)
WEIGHT = np.eye(16)[15].reshape(4, 4) + .5 * np.eye(16)[14].reshape(4, 4)


def test_pixel_flipping_by_hand():
    model, target = Linear(WEIGHT).eval(), torch.tensor([0])
    # drops after 0, 2 and 4 pixels: 0, 7.5 + 3.25, the same
    largest_first = metrics.pixel_flipping(model, RAMP, target, RAMP[:, 0], (.125, .25), step=2)
    np.testing.assert_allclose(largest_first[:, 0], [.125 * 10.75 / 2., .125 * 10.75 * 1.5], rtol=1e-12)
    # by single pixels: 0, 7.5, 10.75, 10.75, 10.75
    singly = metrics.pixel_flipping(model, RAMP, target, RAMP[:, 0], (.0625, .25), step=1)
    np.testing.assert_allclose(singly[:, 0], [3.75 / 16., (3.75 + 9.125 + 21.5) / 16.], rtol=1e-12)
    # the other way round, until 14 pixels are left as they were: no drop, but for the last step of two
    reverse = metrics.pixel_flipping(model, RAMP, target, -RAMP[:, 0], (.875, 1.), step=2)
    np.testing.assert_allclose(reverse[:, 0], [0., .125 * 10.75 / 2.], rtol=1e-12, atol=1e-12)
    tenfold = metrics.pixel_flipping(model, RAMP, torch.tensor([1]), RAMP[:, 0], (.125, .25), step=2)
    np.testing.assert_allclose(tenfold, 10. * largest_first, rtol=1e-12)


def test_the_last_step_of_pixel_flipping_is_cut():
    model, target = Linear(WEIGHT).eval(), torch.tensor([0])
    # 3 of 16 pixels by steps of two: 0, 2 and 3; and steps of 112, of which there is none, as for a fraction below one
    areas = metrics.pixel_flipping(model, RAMP, target, RAMP[:, 0], (3. / 16., .25), step=2)
    np.testing.assert_allclose(areas[:, 0], [(10.75 + 10.75) / 16., 10.75 * 3. / 16.], rtol=1e-12)
    areas = metrics.pixel_flipping(model, RAMP, target, RAMP[:, 0], (.01, .0625, .25))
    np.testing.assert_allclose(areas[:, 0], [3.75 / 16., 3.75 / 16., 10.75 * 2. / 16.], rtol=1e-12)
    alone = metrics.pixel_flipping(model, RAMP, target, RAMP[:, 0], (.25,), step=3)
    both = metrics.pixel_flipping(model, RAMP, target, RAMP[:, 0], (.0625, .25), step=3)
    assert alone[0] == both[1]


def test_pixel_flipping_removes_a_pixel_from_all_channels_by_the_mean_of_the_image():
    seen = []

    class Recorder(torch.nn.Module):
        def forward(self, input):
            seen.append(input.clone())
            return input.flatten(1)[:, :2]

    image, map = random_image(1, 3, 4, 4), random_image(1, 4, 4, seed=2)
    metrics.pixel_flipping(Recorder().eval(), image, torch.tensor([0]), map, (.5,), step=4, batch_size=2)
    assert [len(batch) for batch in seen] == [2, 1]
    for count, removed in zip((0, 4, 8), torch.cat(seen), strict=True):
        expected = image[0].flatten(1).clone()
        expected[:, map.flatten().argsort(descending=True)[:count]] = image.mean()
        torch.testing.assert_close(removed.flatten(1), expected)


def test_pixel_flipping_is_that_of_quantus_for_one_channel_as_long_as_the_mean_stays():
    model = tiny_network(torch.float32, 1)
    half = random_image(1, 1, 2, 4, dtype=torch.float32)
    image = torch.cat([half, -half.flip(2, 3)], 2)  # pairs of opposite pixels
    map = random_image(1, 2, 4, seed=3, dtype=torch.float32)
    map = torch.cat([map, map.flip(1, 2)], 1)
    curve, = quantus.PixelFlipping(2, abs=False, normalise=False, perturb_baseline='mean', disable_warnings=True)(
        model, image.numpy(), np.array([1]), map[:, None].numpy(), softmax=False, channel_first=True
    )
    drop = model(image)[0, 1].item() - np.array([model(image)[0, 1].item(), *curve])
    expected = [((drop[1:] + drop[:-1]) / 2.)[:steps].sum() / 8. for steps in (2, 8)]
    areas = metrics.pixel_flipping(model, image, torch.tensor([1]), map, (.25, 1.), step=2)
    np.testing.assert_allclose(areas[:, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('size, patch_size', [((12, 12), 4), ((13, 10), 4), ((9, 14), 8), ((5, 5), 1), ((4, 4), 9)])
def test_the_curve_of_selectivity_is_that_of_quantus(size, patch_size):
    model, targets = tiny_network(torch.float32), torch.tensor([0, 3, 4])
    images, maps = (
        random_image(3, *shape, *size, seed=seed, dtype=torch.float32) for shape, seed in (((3,), 1), ((), 2))
    )
    expected = np.array(quantus.Selectivity(patch_size, abs=False, normalise=False, disable_warnings=True)(
        model, images.numpy(), targets.numpy(), maps[:, None].numpy(), softmax=False, channel_first=True
    ))
    curves = np.array(metrics.Selectivity(patch_size, batch_size=5)(
        model, images.numpy(), targets.numpy(), maps[:, None].numpy(), channel_first=True
    ))
    np.testing.assert_allclose(curves, expected, rtol=1e-5, atol=1e-6)
    means = metrics.selectivity(model, images, targets, maps, patch_size)
    np.testing.assert_allclose(means, expected.mean(1), rtol=1e-5, atol=1e-6)


def test_selectivity_by_hand():
    # two of four patches count, and black is 1: 16 + 7.5 - (1 + .5) in the last patch, and nothing elsewhere
    model, target = Linear(WEIGHT).eval(), torch.tensor([0])
    np.testing.assert_allclose(metrics.selectivity(model, RAMP, target, RAMP[:, 0], 2), [1.5], rtol=1e-12)
    np.testing.assert_allclose(
        metrics.selectivity(model, RAMP, target, -RAMP[:, 0], 2), [(3. * 23.5 + 1.5) / 4.], rtol=1e-12
    )


def test_quantus_calls_the_classes():
    model, images, maps = tiny_network(torch.float32), random_image(2, 3, 8, 8).float(), random_image(2, 8, 8).float()
    targets = torch.tensor([1, 2])
    areas = metrics.PixelFlipping((.3, .5), step=7)(
        model, images.numpy(), targets.numpy(), maps.numpy(), channel_first=True
    )
    assert np.array_equal(np.array(areas).T, metrics.pixel_flipping(model, images, targets, maps, (.3, .5), 7))


def test_attribution_localisation_by_hand():
    maps, mask = torch.zeros(5, 8, 8), squares((0, 0)).expand(5, 8, 8)
    maps[0, 0, 0], maps[0, 7, 7] = 3., 1.
    maps[1, 0, 0], maps[1, 0, 1], maps[1, 7, 7] = 3., -1., 2.
    maps[2, 0, 0], maps[2, 7, 7] = 3., -1.
    maps[3] = -maps[0]
    np.testing.assert_allclose(
        metrics.attribution_localisation(maps, mask), [.75, .5, np.nan, .75, 0.], rtol=1e-6
    )
    np.testing.assert_allclose(
        metrics.attribution_localisation(maps, mask, positive=True), [.75, .6, 1., 0., 0.], rtol=1e-6
    )


def test_negative_localisation_by_hand():
    maps, mask = torch.zeros(4, 8, 8), squares((0, 0)).expand(4, 8, 8)
    maps[0, 0, 0], maps[0, 0, 1], maps[0, 7, 7] = 5., -1., -3.
    maps[1, 7, 7] = -1.
    maps[2, 0, 0] = 1.
    np.testing.assert_allclose(metrics.negative_localisation(maps, mask), [.25, 0., np.nan, np.nan], rtol=1e-6)
    both = random_image(1, 8, 8), squares((2, 3))
    expected = metrics.attribution_localisation(-both[0], both[1], positive=True)
    np.testing.assert_array_equal(metrics.negative_localisation(*both), expected)


def test_object_auc_counts_pairs_of_pixels():
    maps, masks = random_image(3, 8, 8).mul(2.).round(), squares((0, 0), (2, 3), (4, 4))
    assert len(maps[0].unique()) < 20  # ties
    for map, mask, area in zip(maps, masks, metrics.object_auc(maps, masks), strict=True):
        inside, outside = map[mask][:, None], map[~mask]
        assert area == pytest.approx(((inside > outside).double() + .5 * (inside == outside)).mean().item(), rel=1e-12)


def test_object_auc_depends_on_the_order_alone():
    maps, masks = random_image(3, 8, 8), squares((0, 0), (2, 3), (4, 4))
    areas = metrics.object_auc(maps, masks)
    np.testing.assert_allclose(metrics.object_auc(1e-20 * maps.exp() - 3e-20, masks), areas, rtol=1e-12)
    np.testing.assert_allclose(metrics.object_auc(-maps, masks), 1. - areas, rtol=1e-12)
    np.testing.assert_array_equal(metrics.object_auc(masks.double(), masks), 1.)
    np.testing.assert_array_equal(metrics.object_auc(torch.ones(3, 8, 8), masks), .5)


def test_object_auc_names_what_it_cannot_score():
    maps, masks = random_image(2, 8, 8), squares((0, 0), (0, 0))
    with pytest.raises(ValueError, match=r'images \[1\] cover them'):
        metrics.object_auc(maps, torch.stack([masks[0], masks[1] | True]))
    with pytest.raises(ValueError, match=r'images \[0\] are empty'):
        metrics.object_auc(maps, torch.stack([masks[0] & False, masks[1]]))
    with pytest.raises(FloatingPointError):
        metrics.object_auc(maps * np.nan, masks)


@pytest.mark.parametrize('scale', [1., 1e-30, 1e30])
def test_attribution_localisation_does_not_depend_on_the_maps_scale(scale):
    maps, masks = random_image(3, 8, 8).abs(), squares((0, 0), (2, 3), (4, 4))
    np.testing.assert_allclose(
        metrics.attribution_localisation(scale * maps, masks), (maps * masks).sum((1, 2)) / maps.sum((1, 2)), rtol=1e-6
    )


def test_the_localisation_metrics_are_those_of_quantus(capsys):
    maps, masks = random_image(6, 8, 8).abs(), squares((0, 0), (0, 3), (2, 2), (4, 4), (4, 1), (3, 3))
    for name, own in (
        ('AttributionLocalisation', metrics.attribution_localisation), ('PointingGame', metrics.pointing_game)
    ):
        expected = getattr(quantus, name)(abs=False, normalise=False, disable_warnings=True)(
            None, maps[:, None].numpy(), np.zeros(6), maps[:, None].numpy(), masks[:, None].numpy(), channel_first=True
        )
        capsys.readouterr()
        np.testing.assert_allclose(own(maps, masks), expected, rtol=1e-6)
        assert capsys.readouterr().out == ''


def test_pointing_game_by_hand():
    maps, masks = torch.zeros(5, 8, 8), squares((0, 0)).expand(5, 8, 8)
    maps[0, 3, 3], maps[1, 3, 4] = 1., 1.
    maps[2, 0, 0] = maps[2, 7, 7] = 1.  # one of two is inside
    maps[3] = -1.
    maps[3, 1, 1] = -.5
    assert metrics.pointing_game(maps, masks).tolist() == [1., 0., 1., 1., 0.]
    assert metrics.pointing_game(maps, masks).dtype == np.float64
    assert metrics.pointing_game(torch.zeros(1, 8, 8), masks[:1]).tolist() == [0.]


def test_max_sensitivity_is_that_of_quantus():
    model, images, targets = tiny_network(torch.float32), random_image(2, 3, 6, 6).float(), torch.tensor([1, 2])

    def explain(inputs, targets):
        inputs = inputs.detach().requires_grad_()
        gradient, = torch.autograd.grad(model(inputs).square()[range(len(inputs)), targets].sum(), inputs)
        return (gradient * inputs).sum(1).detach()

    def explain_func(model, inputs, targets, **kwargs):
        return explain(torch.from_numpy(inputs), torch.from_numpy(targets)).numpy()

    expected = []
    state = np.random.get_state()
    for image, target in zip(images.numpy(), targets.numpy()):
        np.random.seed(7)
        expected += quantus.MaxSensitivity(nr_samples=5, abs=True, normalise=False, disable_warnings=True)(
            model, image[None], target[None], explain_func=explain_func, channel_first=True
        )
    np.random.set_state(state)
    own = metrics.max_sensitivity(model, images, targets, explain, 5, 7)
    np.testing.assert_allclose(own, expected, rtol=1e-4)
    assert own.dtype == np.float64 and (np.random.get_state()[1] == state[1]).all()
    signs = metrics.max_sensitivity(model, images, targets, lambda *each: -explain(*each), 5, 7)
    assert np.array_equal(own, signs)
    assert not np.allclose(own, metrics.max_sensitivity(model, images, targets, explain, 5, 8))
    seeds = metrics.max_sensitivity(model, images, targets, explain, 5, (7, 8))
    np.testing.assert_allclose(seeds[0], own[0], rtol=1e-5)
    assert not np.allclose(seeds[1], own[1])


def test_max_sensitivity_by_hand():
    # the map is the input: the change is the norm of the noise by that of the input
    image, noise = torch.full((1, 1, 2, 2), 2., dtype=torch.float64), np.random.RandomState(0)
    norms = [np.linalg.norm(noise.uniform(-.2, .2, 4)) for _ in range(25)]
    own = metrics.max_sensitivity(Linear(np.ones((2, 2))).eval(), image, torch.tensor([0]), lambda x, t: x.sum(1))
    np.testing.assert_allclose(own, [max(norms) / 4.], rtol=1e-12)
    constant = metrics.max_sensitivity(
        Linear(np.ones((2, 2))).eval(), image, torch.tensor([0]), lambda x, t: -torch.ones(1, 2, 2)
    )
    assert constant.tolist() == [0.]
    assert np.isnan(metrics.max_sensitivity(
        Linear(np.ones((2, 2))).eval(), image, torch.tensor([0]), lambda x, t: torch.zeros(1, 2, 2)
    )).all()


def test_the_grid_pointing_game_by_hand():
    maps = torch.zeros(4, 4, 6)
    maps[0, :2, :3], maps[0, 2:, 3:] = 1., 3.
    maps[1] = maps[0]
    maps[2], maps[2, 3, 0] = -5., 2.
    quadrants = torch.tensor([0, 3, 2, 1])
    assert metrics.grid_pointing_game(maps, quadrants).tolist() == [.25, .75, 1., 0.]
    with pytest.raises(ValueError, match='even'):
        metrics.grid_pointing_game(maps[:, 1:], quadrants)
    with pytest.raises(ValueError, match='numbered'):
        metrics.grid_pointing_game(maps, quadrants + 1)
    with pytest.raises(ValueError, match='quadrants'):
        metrics.grid_pointing_game(maps, quadrants[:3])


def test_mosaics_are_of_different_classes_and_confident():
    targets = torch.arange(30) % 6
    confidences = torch.linspace(.2, .95, 30)
    members = mosaic_members(targets, confidences, 20, seed=1)
    assert members.shape == (20, 4) and (confidences[members] >= .5).all()
    assert all(len(set(row.tolist())) == 4 for row in targets[members])
    assert torch.equal(members, mosaic_members(targets, confidences, 20, seed=1))
    assert not torch.equal(members, mosaic_members(targets, confidences, 20, seed=2))
    with pytest.raises(ValueError, match='2 have one with a probability of at least 0.9'):
        mosaic_members(targets, confidences, 1, least=.9)
    with pytest.raises(ValueError, match='confidences'):
        mosaic_members(targets, confidences[1:], 1)
    images = torch.arange(4.).view(4, 1, 1, 1).expand(4, 3, 4, 5)
    whole = mosaic(images)
    assert whole.shape == (3, 8, 10) and whole[0, [0, 0, 7, 7], [0, 9, 0, 9]].tolist() == [0., 1., 2., 3.]
    assert torch.equal(whole[:, 4:, :5], images[2])


def test_mosaics_of_drawings():
    classifier = load_classifier('demo')
    drawings = Drawings(classifier, 12)
    chosen = Mosaics(drawings, list(range(2, 12)), 3, seed=1)
    assert len(chosen) == 12 and chosen.names[5] == '00001-top-right'
    sample = chosen.sample(5)
    member = drawings.sample(chosen.members[1][1])
    assert sample.label == member.label and sample.input.shape == (3, 128, 128)
    assert torch.equal(sample.input[:, :64, 64:], member.input)
    assert sample.mask[:64, 64:].all() and sample.mask.sum() == 64 ** 2
    assert set().union(*chosen.members) <= set(range(2, 12))
    assert chosen.fingerprint() == Mosaics(drawings, list(range(2, 12)), 3, seed=1).fingerprint()
    assert chosen.fingerprint() != Mosaics(drawings, list(range(2, 12)), 3, seed=2).fingerprint()
    # the share inside the quadrant's mask is the score of the game
    map = torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0))
    expected = metrics.grid_pointing_game(map, torch.tensor([1]))
    found = metrics.attribution_localisation(map, sample.mask[None], positive=True)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # Quantus adds 1e-9


def test_a_network_of_a_fixed_size_takes_no_mosaics():
    require_any_size(tiny_network(), random_image(3, 16, 16))
    fixed = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)).double().eval()
    require_any_size(fixed, random_image(3, 8, 8))
    with pytest.raises(ValueError, match='16 x 16 pixels, as mosaics are'):
        require_any_size(fixed, random_image(3, 16, 16))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_score_depends_on_its_own_image_alone(dtype, device):
    model = tiny_network(dtype).to(device)
    images, maps = (
        random_image(4, *shape, 12, 12, dtype=dtype).to(device) for shape in ((3,), ())
    )
    maps *= torch.tensor([1e-12, 1., -1e6, 5.], dtype=dtype, device=device).view(-1, 1, 1)
    maps[1] = maps[1].abs()
    masks, targets = squares((0, 0), (4, 4), (8, 1), (3, 6), size=12).to(device), torch.tensor([0, 1, 4, 2]).to(device)

    def explain(inputs, targets):
        return (inputs * model(inputs)[range(len(inputs)), targets].view(-1, 1, 1, 1)).detach().sum(1)

    def all_scores(chosen):
        on_images = images[chosen], targets[chosen]
        return np.stack([
            *metrics.pixel_flipping(model, *on_images, maps[chosen], step=5),
            metrics.selectivity(model, *on_images, maps[chosen], 4),
            metrics.attribution_localisation(maps[chosen], masks[chosen]),
            metrics.attribution_localisation(maps[chosen], masks[chosen], positive=True),
            metrics.pointing_game(maps[chosen], masks[chosen]),
            metrics.max_sensitivity(model, *on_images, explain, 4),
            metrics.grid_pointing_game(maps[chosen], targets[chosen] % 4),
        ])

    together = all_scores([0, 1, 2, 3])
    assert together.dtype == np.float64 and together.shape == (8, 4)
    exact = [row for row in range(8) if row != 6]
    for index in range(4):
        alone = all_scores([index])[:, 0]
        np.testing.assert_array_equal(alone[exact], together[exact, index])
        np.testing.assert_allclose(alone[6], together[6, index], rtol=1e-5)
    np.testing.assert_array_equal(all_scores([3, 2, 1, 0])[exact], together[exact, ::-1])


def test_a_perfect_map_is_better_than_a_random_and_a_reverse_one():
    weight = torch.rand(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 4
    model, image, target = Linear(weight).eval(), torch.ones(1, 1, 16, 16).double(), torch.tensor([0])
    image[:, :, ::2] = 2.
    perfect = (weight * (image - image.mean()))[0]
    maps = torch.cat([perfect, random_image(1, 16, 16), -perfect])
    images, targets = image.expand(3, 1, 16, 16), target.expand(3)
    for areas in metrics.pixel_flipping(model, images, targets, maps, (.05, .2), step=4):
        assert areas[0] > areas[1] > areas[2]
    maps[0], maps[2] = weight * image[0, 0], -weight * image[0, 0]
    means = metrics.selectivity(model, images, targets, maps, 2)
    assert means[0] < means[1] < means[2]
    masks = squares((3, 5), size=16).expand(3, 16, 16)
    maps = torch.stack([masks[0].double(), random_image(16, 16).abs(), (~masks[0]).double()])
    shares, hits = metrics.attribution_localisation(maps, masks), metrics.pointing_game(maps, masks)
    np.testing.assert_allclose(shares[[0, 2]], [1., 0.], atol=1e-6)
    assert 0. < shares[1] < .5 and hits[0] == 1. and hits[2] == 0.


def test_the_model_stays_as_it_was():
    model = tiny_network(torch.float32)
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    images, maps, targets = random_image(2, 3, 8, 8).float(), random_image(2, 8, 8).float(), torch.tensor([1, 2])
    inputs, state = images.clone(), np.random.get_state()[1].copy()
    metrics.pixel_flipping(model, images, targets, maps)
    metrics.selectivity(model, images, targets, maps)
    metrics.max_sensitivity(model, images, targets, lambda inputs, targets: inputs.sum(1), 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks and not module._backward_hooks and not module._forward_pre_hooks
        assert not module.training
    assert [each.requires_grad for each in model.parameters()] == [False] + 5 * [True]
    assert all(each.grad is None for each in model.parameters())
    assert torch.equal(images, inputs) and (np.random.get_state()[1] == state).all()


def test_errors():
    model, images, targets = tiny_network(), random_image(2, 3, 8, 8), torch.tensor([0, 1])
    maps, masks = random_image(2, 8, 8), squares((0, 0), (1, 1))

    def explain(inputs, targets):
        return inputs.sum(1)

    flipping, selectivity = metrics.pixel_flipping, metrics.selectivity
    for metric in (flipping, selectivity):
        with pytest.raises(ValueError, match='the maps must have the shape'):
            metric(model, images, targets, maps[:, 1:])
        with pytest.raises(ValueError, match='the maps must have the shape'):
            metric(model, images, targets, maps[:1])
        with pytest.raises(ValueError, match='the targets must have the shape'):
            metric(model, images, targets[:1], maps)
        with pytest.raises(ValueError, match='the inputs must be'):
            metric(model, images[0], targets, maps)
        with pytest.raises(ValueError, match='there is no class 5'):
            metric(model, images, targets + 4, maps)
        with pytest.raises(ValueError, match='the model\'s output must have the shape'):
            metric(model[:1].eval(), images, targets, maps)
        with pytest.raises(ValueError, match='batch_size must be positive'):
            metric(model, images, targets, maps, batch_size=0)
        with pytest.raises(FloatingPointError, match='a map is not finite'):
            metric(model, images, targets, maps / 0.)
        with pytest.raises(FloatingPointError, match='a logit is not finite'):
            metric(Linear(np.full((8, 8), np.inf)).eval(), images, targets, maps)
    with pytest.raises(ValueError, match='fractions'):
        flipping(model, images, targets, maps, (.5, 1.5))
    with pytest.raises(ValueError, match='step'):
        flipping(model, images, targets, maps, step=0)
    with pytest.raises(ValueError, match='patch_size'):
        selectivity(model, images, targets, maps, patch_size=0)
    for metric in (metrics.attribution_localisation, metrics.pointing_game):
        with pytest.raises(ValueError, match=r'the masks of the images \[1\] are empty'):
            metric(maps, masks & torch.tensor([True, False]).view(-1, 1, 1))
        with pytest.raises(ValueError, match='type bool'):
            metric(maps, masks.double())
        with pytest.raises(ValueError, match='the maps must have the shape'):
            metric(maps[:, 1:], masks)
        with pytest.raises(ValueError, match='the maps must have the shape'):
            metric(maps[0], masks[0])
        with pytest.raises(FloatingPointError, match='not finite'):
            metric(maps * torch.nan, masks)
    with pytest.raises(ValueError, match='samples'):
        metrics.max_sensitivity(model, images, targets, explain, 0)
    with pytest.raises(ValueError, match='the maps must have the shape'):
        metrics.max_sensitivity(model, images, targets, lambda inputs, targets: inputs)
    with pytest.raises(FloatingPointError, match='not finite'):
        metrics.max_sensitivity(model, images, targets, lambda inputs, targets: inputs.sum(1) / 0.)
    model[1].train()
    for arguments in ((flipping, maps), (selectivity, maps), (metrics.max_sensitivity, explain)):
        with pytest.raises(RuntimeError, match='training mode'):
            arguments[0](model, images, targets, arguments[1])
    with pytest.raises(RuntimeError, match='training mode'):
        require_any_size(model, images[0])


def test_the_table_of_metrics():
    assert [name for name, metric in metrics.METRICS.items() if metric.larger_is_better is False] == [
        'selectivity', 'negative_localisation', 'max_sensitivity', 'class_agreement', 'hog', 'spearman', 'ssim',
        'frequency_gap', 'gradient_gap', 'time',
    ]
    assert metrics.METRICS['expected_frequency'].larger_is_better is None
    assert [name for name, metric in metrics.METRICS.items() if metric.needs_mosaic] == ['grid_pointing_game']


def test_similarities_by_hand():
    from skimage.feature import hog

    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 32, 40, generator=generator, dtype=torch.float64)
    assert similarities(first, 7. * first) == pytest.approx((1., 1., 1.), abs=1e-12)  # a scale has no effect
    gradients, ranks, structure = similarities(first, second)
    # ranks by sorting, and Pearson's formula written out
    places = [each.flatten().argsort().argsort().double() for each in (first, second)]
    centered = [each - each.mean() for each in places]
    assert ranks == pytest.approx((centered[0] @ centered[1] / (centered[0].norm() * centered[1].norm())).item())
    histograms = [hog((each / each.abs().max()).numpy()) for each in (first, second)]
    centered = [each - each.mean() for each in histograms]
    norms = np.prod([np.linalg.norm(each) for each in centered])
    assert gradients == pytest.approx(centered[0] @ centered[1] / norms)
    assert -1. < structure < .2
    assert similarities(first, -first)[1] == pytest.approx(-1.)  # signed
    flat = torch.ones(32, 40)
    assert similarities(flat, flat)[:2] == (1., 1.) and similarities(first, flat)[:2] == (0., 0.)
    with pytest.raises(FloatingPointError):
        similarities(first, first / 0.)
    with pytest.raises(ValueError, match='24 pixels'):
        similarities(first[:20], second[:20])


def test_randomised_layers():
    classifier = load_classifier('demo')
    before = {name: tensor.clone() for name, tensor in classifier.model.state_dict().items()}
    drawn = [randomised(classifier, 2, seed).model.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.model.state_dict().items())
    changed = [name for name in before if not torch.equal(before[name], drawn[0][name])]
    affine = [name for name, module in classifier.model.named_modules()
              if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    assert {name.rpartition('.')[0] for name in changed} == set(affine[-2:])
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in before)
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in changed)
    weight = next(name for name in changed if name.startswith(affine[-2]))
    assert drawn[0][weight].std().item() == pytest.approx(before[weight].std().item(), rel=.05)  # of 36,864 numbers
    assert abs(drawn[0][weight].mean()) < .05 * before[weight].std()
    assert type(classifier.model) is type(demo_network())
    with pytest.raises(ValueError, match='layers and convolutions'):
        randomised(classifier, 100)


def test_quantus_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'quantus', None)
    for name in ('metrics', 'faithfulness', 'localisation', 'robustness'):
        monkeypatch.delitem(sys.modules, f'zennit_dc.evaluation.{name}')
    with pytest.raises(ModuleNotFoundError, match='the metrics need Quantus') as raised:
        importlib.import_module('zennit_dc.evaluation.metrics')
    assert raised.value.name == 'quantus'
