'''SqueezeNet and photographs of ImageNet, where they are at hand.'''
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import assert_close, explain, rounding
from PIL import Image

from zennit_dc import SplitCAM, SplitGrad, SplitLRP
from zennit_dc.data.classifiers import load_classifier


DATA = Path(__file__).parents[2] / 'shared' / 'data'
WEIGHTS = DATA / 'weights' / 'squeezenet1_0_imagenet.pt'
pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason='the weights and photographs of ../shared are not here')


@pytest.fixture(scope='module', name='model')
def fixture_model():
    model = torchvision.models.squeezenet1_0(weights=None)
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model.eval()


@pytest.fixture(scope='module', name='photographs')
def fixture_photographs():
    '''Every tenth photograph, and its class.'''
    transform = torchvision.models.SqueezeNet1_0_Weights.DEFAULT.transforms()
    paths = sorted((DATA / 'imagenet').glob('*.JPEG'))[::10]
    assert len(paths) == 10
    images = torch.stack([transform(Image.open(path).convert('RGB')) for path in paths])
    return images, torch.tensor([int(path.name[:3]) for path in paths])


def attribute(composite, model, images, targets):
    images = images.clone().requires_grad_()
    with composite.context(model):
        output = model(images)
        relevance, = torch.autograd.grad(output.gather(1, targets[:, None]).sum(), images)
    return output, relevance


@pytest.mark.slow(5)
def test_predictions_and_maps(model, photographs):
    images, targets = photographs
    with torch.no_grad():
        expected = model(images)
    assert (expected.argmax(1) == targets).float().mean() >= .5
    images, targets = images[:4], targets[:4]
    with torch.no_grad():
        expected = model(images)
    for composite in (
        SplitGrad(), SplitGrad(0.), SplitLRP(), SplitLRP(layer='features.9'), SplitCAM('features.12'),
        SplitCAM('features.4', stream='+g'), SplitCAM('features.9', .45, '-h', pooling='convex'),
    ):
        output, relevance = attribute(composite, model, images, targets)
        assert torch.equal(output, expected)
        assert torch.isfinite(relevance).all() and (relevance.abs().amax((1, 2, 3)) > 0).all()


@pytest.mark.parametrize('layer', ['features.2', 'features.4', 'features.9', 'features.12'])
def test_split_cam_at_one_half_is_half_of_the_unrectified_layer_cam(model, photographs, layer):
    images, targets = photographs
    seen = []

    def keep(module, args, output):
        seen.append(output)
        return output.clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    output = model(images)
    handle.remove()
    gradient, = torch.autograd.grad(output.gather(1, targets[:, None]).sum(), seen)
    composite = SplitCAM(layer, .5)
    attribute(composite, model, images, targets)
    # equal but for the order in which float32 sums are taken
    tolerance = max(rounding(model, image[None], unit=unit) for image, unit in zip(images[:2], targets))
    assert_close(composite.saliency, (gradient * seen[0]).sum(1).detach() / 2, tolerance)


def test_maps_do_not_depend_on_the_batch(model, photographs):
    images, targets = photographs
    for composite in (SplitGrad(), SplitLRP(), SplitCAM('features.9', stream='+g')):
        _, together = attribute(composite, model, images[:3], targets[:3])
        _, alone = attribute(composite, model, images[1:2], targets[1:2])
        # in float32 some ten layers differ by the order in which convolutions sum
        assert_close(together[1:2], alone, rounding(model, images[1:2], unit=targets[1]))


def test_output_of_explain_is_the_plain_one(model, photographs):
    explain(SplitLRP(), model, photographs[0][:1], unit=7)


def test_evaluation_of_photographs(tmp_path):
    '''Polygons lie over their objects, methods beat the controls, and the results are resumed.'''
    pytest.importorskip('quantus', reason='the extra "evaluation" is not installed')
    from zennit_dc.evaluation.data import Polygons
    from zennit_dc.evaluation.runs import evaluate
    from zennit_dc.evaluation.settings import grid

    classifier = load_classifier('squeezenet1_0', WEIGHTS)
    images = Polygons(classifier, DATA / 'imagenet', DATA / 'imagenet' / 'masks.json')
    assert len(images) == 68
    methods = ['splitcam', 'layercam', 'random', 'binary-mask']
    settings = grid(methods, [False], layer=['features.12'], alpha=[.45])
    metrics, chosen = ['attribution_localisation', 'pointing_game'], range(0, 68, 4)
    found = evaluate(classifier, images, chosen, settings, metrics, tmp_path, progress=False)
    results = (tmp_path / 'scores-0.jsonl').read_text().split()
    assert found.equals(evaluate(classifier, images, chosen, settings, metrics, tmp_path, progress=False))
    assert (tmp_path / 'scores-0.jsonl').read_text().split() == results  # nothing twice
    means = found.groupby(['metric', 'method'])['score'].mean()
    located, pointed = means['attribution_localisation'], means['pointing_game']
    assert pointed['Binary Mask'] == 1. and located['Binary Mask'] == pytest.approx(1., abs=1e-6)
    for method in ('SplitCAM', 'LayerCAM'):
        assert located[method] > located['Random Baseline'] + .1
        assert pointed[method] > pointed['Random Baseline'] + .2
    # noise has the mask's share of the image
    shares = [images.sample(index).mask.double().mean().item() for index in chosen]
    assert located['Random Baseline'] == pytest.approx(sum(shares) / len(shares), abs=.01)
