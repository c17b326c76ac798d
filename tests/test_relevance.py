'''What enters at the output: classes, contrasts, and how linear maps are in it.'''
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import assert_close, random_image
from PIL import Image
from torch import nn
from zennit.attribution import Gradient, SmoothGrad

from zennit_dc import SplitCAM, SplitGrad, SplitLRP, SplitTensor, class_agreement, contrast
from zennit_dc.attribution import class_relevance, map_cosine, relevance_of, runner_up
from zennit_dc.data.classifiers import last_layer, load_classifier
from zennit_dc.demo import demo_network, draw_batch


DATA = Path(__file__).parents[2] / 'shared' / 'data'
needs_data = pytest.mark.skipif(not DATA.exists(), reason='the weights and photographs of ../shared are not here')


@pytest.fixture(scope='module', name='network')
def fixture_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3), nn.LeakyReLU(.1), nn.Flatten(),
        nn.Linear(5 * 3 * 3, 7), nn.ReLU(), nn.Linear(7, 5)
    ).double().eval()


@pytest.fixture(name='image')
def fixture_image():
    return random_image(3, 3, 12, 12)


COMPOSITES = [
    *(SplitGrad(.4, stream) for stream in ('+g', '-g', 'g', '+h', '-h', 'h')), SplitGrad(.3, layer='3'),
    SplitCAM('3', .4), SplitCAM('3', 0., '+h'), SplitLRP(), SplitLRP(stream='negative', layer='3'),
]


@pytest.mark.parametrize('composite', COMPOSITES)
def test_maps_are_linear_in_the_relevance(composite, network, image):
    def map_of(relevance):
        return Gradient(network, composite)(image, relevance)[1]

    one, two = random_image(2, 3, 5, seed=3)
    first, second = map_of(one), map_of(two)
    assert_close(map_of(-one), -first)
    assert_close(map_of(2. * one - .5 * two), 2. * first - .5 * second)


@pytest.mark.parametrize('composite', [SplitGrad(), SplitGrad(stream='+h'), SplitCAM('3')])
def test_balanced_is_linear_in_positive_multiples(composite, network, image):
    one = random_image(3, 5, seed=3)
    first = Gradient(network, composite)(image, one)[1]
    assert_close(Gradient(network, composite)(image, 3. * one)[1], 3. * first)


@pytest.mark.parametrize('composite', [SplitGrad(.4), SplitCAM('3', .4), SplitLRP()])
def test_contrast_is_a_difference_of_class_maps(composite, network, image):
    def map_of(relevance):
        return Gradient(network, composite)(image, relevance)[1]

    maps = [map_of(class_relevance(index)) for index in range(5)]
    probabilities = network(image).detach()[:, [0, 1, 3, 4]].softmax(1)[..., None, None, None]
    others = torch.stack([maps[index] for index in (0, 1, 3, 4)], 1)
    assert_close(map_of(contrast(2)), maps[2] - others.mean(1))
    assert_close(map_of(contrast(2, 'likely')), maps[2] - (probabilities * others).sum(1))
    assert_close(map_of(contrast(2, 4)), maps[2] - maps[4])
    assert_close(map_of(contrast(2, [0, 4])), maps[2] - (maps[0] + maps[4]) / 2)


def test_contrast_does_not_see_what_is_added_to_all_logits(network, image):
    class Shifted(nn.Module):
        def forward(self, input):
            return network(input) + 5. * input.square().mean((1, 2, 3))[:, None]

    for against in ('others', 'likely', [0, 4]):
        relevance = contrast(torch.tensor([2, 3, 1]), against)
        assert_close(Gradient(Shifted())(image, relevance)[1], Gradient(network)(image, relevance)[1])


def test_relevances_sum_up_to_zero_and_follow_the_image():
    output = random_image(4, 6)
    for against in ('others', 'likely', 0, [0, 5], torch.tensor([0, 5])):
        relevance = contrast(torch.tensor([1, 2, 3, 4]), against)(output)
        assert relevance.dtype == output.dtype and relevance.sum(1).abs().max() < 1e-15
        assert torch.equal(relevance.argmax(1), torch.tensor([1, 2, 3, 4])) and (relevance.max(1)[0] == 1.).all()
        alone = contrast(torch.tensor([3]), against)(output[2:3])
        assert torch.equal(relevance[2:3], alone)
    assert torch.equal(relevance_of(1)(output), relevance_of(1, 'none')(output))
    assert torch.equal(relevance_of(1, 'likely')(output), contrast(1, 'likely')(output))
    with torch.no_grad():  # an image of which the network is certain
        certain = torch.tensor([[100., 0., 0.]])
        assert contrast(0, 'likely')(certain).tolist() == [[1., -.5, -.5]]


@pytest.mark.parametrize('arguments, message', [
    ((0, 'all'), 'against must be'), ((0, 0), 'against itself'), ((0, [1, 0]), 'against itself'),
    ((0, 9), 'there is no class 9'), ((9, 'others'), 'there is no class 9'), ((-1, 0), 'there is no class -1'),
])
def test_contrasts_that_there_are_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        contrast(*arguments)(torch.zeros(2, 5))
    with pytest.raises(ValueError, match='no other class'):
        contrast()(torch.zeros(2, 1))


@pytest.mark.parametrize('target', [1.5, 'cat', True, torch.tensor(1.), torch.tensor(True)])
def test_a_class_is_given_by_its_index(target):
    for make in (class_relevance, contrast, lambda target: contrast(3, [target])):
        with pytest.raises(TypeError, match='by its index'):
            make(target)


def test_indices_of_classes():
    output = torch.zeros(3, 5)
    for target in ([1, 0, 4], np.array([1, 0, 4]), *(
        torch.tensor([1, 0, 4], dtype=dtype) for dtype in (torch.uint8, torch.int32, torch.int64)
    )):
        assert torch.equal(class_relevance(target)(output), torch.eye(5)[[1, 0, 4]])
        assert torch.equal(contrast(3, target)(output)[0], torch.tensor([-1., -1., 0., 3., -1.]) / 3)
    for target in ([1, 2], torch.tensor([[1], [2], [3]])):
        with pytest.raises(ValueError, match='for 3 samples'):
            class_relevance(target)(output)
    with pytest.raises(ValueError, match='index of a class'):
        contrast(1, [])
    assert class_relevance()(output[:0]).shape == contrast(None, 'likely')(output[:0]).shape == (0, 5)


@pytest.mark.parametrize('others', [float('nan'), float('-inf')])
def test_others_without_probabilities(others):
    with pytest.raises(FloatingPointError, match='no probabilities.*not finite'):
        contrast(1, 'likely')(torch.tensor([[others, 1., others]]))


def test_zennit_and_contrasts_of_peers(network, image):
    '''Any attributor of Zennit takes the function.'''
    assert SmoothGrad(network, n_iter=2)(image, contrast())[1].isfinite().all()
    output, map = Gradient(network, attr_output=contrast(1))(image)
    assert_close(map, torch.autograd.grad(
        (network(image := image.requires_grad_()) * contrast(1)(output)).sum(), image
    )[0])


def test_agreement(network, image):
    attributor = Gradient(network, SplitGrad(.45))
    output = network(image)
    likeliest = output.argsort(1, descending=True)
    maps = [attributor(image, class_relevance(likeliest[:, place]))[1].sum(1) for place in (0, 1)]
    expected = torch.stack([torch.cosine_similarity(*(each[index].flatten() for each in maps), dim=0)
                            for index in range(3)])
    assert_close(class_agreement(attributor, image), expected)
    assert_close(class_agreement(attributor, image, likeliest[:, 1], likeliest[:, 0]), expected)
    assert_close(class_agreement(attributor, image[1:2]), expected[1:2])
    against = class_agreement(attributor, image, 0, 1, lambda target: contrast(target, 1 - int(target[0])))
    assert_close(against, -torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match='different classes'):
        class_agreement(attributor, image, 2, 2)
    assert torch.isnan(map_cosine(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))).all()


def test_runner_up():
    output = torch.tensor([.1, 3., 2., 1.])
    assert runner_up(output, 1) == 2 and runner_up(output, 2, 'likely') == 1 and runner_up(output, 1, [2, 3]) == 0
    assert runner_up(output[:2], 0, [1]) is None


@pytest.mark.parametrize('function', [
    torch.relu, lambda pair: torch.maximum(pair, 2. * pair), lambda pair: pair.amax(1),
    lambda pair: pair.unflatten(1, (2, 3)).max(1).values, nn.MaxPool1d(2)
])
def test_maxima_count_as_activations(function):
    '''Balanced counts them on the way, except for max-pooling, which moves values.'''
    pair = SplitTensor.of(random_image(2, 6))
    assert function(pair).depth == (0 if isinstance(function, nn.MaxPool1d) else 1)


# maps of the defaults are about the class

def default_maps(layer):
    return {'SplitGrad': SplitGrad(), 'SplitCAM': SplitCAM(layer), 'SplitLRP': SplitLRP(stream='positive', layer=layer)}


def mean_agreements(classifier, inputs, against):
    layer = last_layer(classifier)
    return {
        name: class_agreement(
            Gradient(classifier.model, composite), inputs, relevance=lambda target: relevance_of(target, against)
        ).nanmean().item() for name, composite in default_maps(layer).items()
    }


def test_agreement_on_the_demo():
    classifier = load_classifier('demo')
    images, _, _ = draw_batch(12, 5)
    inputs = torch.stack([classifier.preprocessing(Image.fromarray(image)) for image in images])
    assert max(mean_agreements(classifier, inputs, 'likely').values()) < .5
    alpha_0 = class_agreement(Gradient(demo_network(), SplitGrad(0.)), inputs).mean()
    assert alpha_0 > .99  # what is the same for all classes takes over


@needs_data
def test_agreement_on_squeezenet():
    model = torchvision.models.squeezenet1_0()
    model.load_state_dict(torch.load(DATA / 'weights' / 'squeezenet1_0_imagenet.pt', weights_only=True))
    classifier = load_classifier('squeezenet1_0', None)._replace(model=model.eval())
    photographs = sorted((DATA / 'imagenet').glob('*.JPEG'))[::12]
    inputs = torch.stack([classifier.preprocessing(Image.open(path).convert('RGB')) for path in photographs])
    assert max(mean_agreements(classifier, inputs, 'likely').values()) < .5


@needs_data
def test_agreement_on_a_residual_network():
    with np.load(DATA / 'cifar10' / 'test_1000.npz') as arrays:
        images = arrays['x'][::40]
    model = runpy.run_path(str(Path(__file__).parents[1] / 'examples' / 'virelay_project.py'))['ResNet20']()
    model.load_state_dict(torch.load(DATA / 'weights' / 'resnet20_cifar10.pt', weights_only=True))
    classifier = load_classifier('resnet18', None, 32)._replace(model=model.eval())
    inputs = torch.stack([classifier.preprocessing(Image.fromarray(image)) for image in images])
    assert (model(inputs).argmax(1) == torch.arange(0, 1000, 40) // 100).double().mean() > .7
    assert max(mean_agreements(classifier, inputs, 'likely').values()) < .5


def test_a_class_is_no_relevance():
    '''It would end in an error of torch that does not say what to pass.'''
    model, image = demo_network(), torch.rand(1, 3, 64, 64)
    expected = Gradient(model, SplitGrad())(image, class_relevance(3))[1]
    for wrong in (3, np.int64(3)):
        with pytest.raises(TypeError, match=r'class_relevance\(3\), or zennit_dc.contrast\(3\)'):
            Gradient(model, SplitGrad())(image, wrong)
    tensor = torch.nn.functional.one_hot(torch.tensor([3]), 10).float()
    assert torch.equal(Gradient(model, SplitGrad())(image, tensor)[1], expected)
    with pytest.raises(TypeError, match='got int'):  # as Zennit has it, whose attributors are left as they are
        Gradient(model)(image, 3)
