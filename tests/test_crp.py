'''Relevance that is conditioned on channels, as zennit-crp computes it with these composites.'''
import pytest
import torch
from helpers import assert_close, random_image
from torch import nn
from zennit.attribution import Gradient

from zennit_dc import SplitGrad, SplitLRP


crp = pytest.importorskip('crp.attribution', reason='zennit-crp is not installed (pip install --no-deps zennit-crp)')
Concept = pytest.importorskip('crp.concepts').ChannelConcept

LAYERS = {'features.0': 4, 'features.1': 4, 'features.2': 4, 'features.4': 5, 'features.5': 5, 'dense': 6}


class Branched(nn.Module):
    '''Convolutions with and without a batch norm, in-place activations, a residual connection and two linear layers.'''
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True),
        )
        self.branch, self.dense, self.end = nn.Conv2d(5, 5, 1), nn.Linear(80, 6), nn.Linear(6, 3)
        self.features[1].running_mean.uniform_(-.2, .2)
        self.features[1].running_var.uniform_(.5, 2.)

    def forward(self, input):
        hidden = self.features(input)
        hidden = (hidden + self.branch(hidden)).relu()
        return self.end(self.dense(hidden.flatten(1)).relu())


@pytest.fixture(name='model')
def fixture_model():
    return Branched().double().eval()


def conditional(model, conditions, composite, **kwargs):
    '''What zennit-crp returns for one image.'''
    image = random_image(1, 3, 8, 8).requires_grad_()
    return crp.CondAttribution(model)(image, conditions, composite, **kwargs)


def test_without_conditions_it_is_the_map(model):
    image = random_image(1, 3, 8, 8)
    with Gradient(model, SplitLRP()) as attributor:
        output, expected = attributor(image, lambda output: output * torch.eye(3, dtype=output.dtype)[[1]])
    found = conditional(model, [{'y': [1]}], SplitLRP())
    assert torch.equal(found.prediction, output) and torch.equal(found.heatmap, expected.sum(1))


@pytest.mark.parametrize('exclude_parallel', [True, False])
@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('composite', [SplitLRP, lambda: SplitLRP(stream='positive'), lambda: SplitGrad(.4)])
def test_conditional_maps_of_all_channels_sum_to_the_whole(model, layer, composite, exclude_parallel):
    whole = conditional(model, [{'y': [1]}], composite()).heatmap
    conditions = [{'y': [1], layer: [channel]} for channel in range(LAYERS[layer])]
    parts = conditional(model, conditions, composite(), exclude_parallel=exclude_parallel).heatmap
    assert parts.shape == (LAYERS[layer], 8, 8) and (parts[0] - parts[1]).abs().max() > 0
    assert_close(parts.sum(0, keepdim=True), whole)


def test_several_layers_in_one_condition(model):
    whole = conditional(model, [{'y': [1]}], SplitLRP()).heatmap
    conditions = [{'y': [1], 'dense': [first], 'features.4': [other]} for first in range(6) for other in range(5)]
    for exclude_parallel in (True, False):
        parts = conditional(model, conditions, SplitLRP(), exclude_parallel=exclude_parallel).heatmap
        assert_close(parts.sum(0, keepdim=True), whole)


def test_recorded_relevance_is_the_map_at_the_layer(model):
    layers = ['features.0', 'features.2', 'features.5', 'dense']  # of what is changed in place, zennit-crp keeps one
    found = conditional(model, [{'y': [1]}], SplitLRP(), record_layer=layers)
    for layer in ('features.2', 'features.5'):
        composite = SplitLRP(layer=layer)
        conditional(model, [{'y': [1]}], composite)
        assert_close(found.relevances[layer].sum(1), composite.saliency)
    activations = {}
    handles = [model.get_submodule(layer).register_forward_hook(
        lambda module, args, output, layer=layer: activations.update({layer: output.clone()})) for layer in layers]
    model(random_image(1, 3, 8, 8))
    for handle in handles:
        handle.remove()
    for layer in ('features.2', 'features.5', 'dense'):
        assert torch.equal(found.activations[layer], activations[layer])
    masked = conditional(model, [{'y': [1], 'features.4': [2]}], SplitLRP(), record_layer=['features.4'])
    others = [0, 1, 3, 4]
    assert not masked.relevances['features.4'][:, others].any() and masked.relevances['features.4'][:, 2].any()
    assert_close(masked.relevances['features.4'][:, 2], found.relevances['features.5'][:, 2])


def test_starting_at_a_layer_is_the_map_of_a_model_that_ends_there(model):
    image = random_image(1, 3, 8, 8)
    shorter = nn.Sequential(*model.features[:5])
    with Gradient(shorter, SplitLRP()) as attributor:
        channel = torch.eye(5, dtype=torch.float64)[2].reshape(1, 5, 1, 1)
        _, expected = attributor(image, lambda output: output * channel)
    model.features[5] = nn.ReLU()
    found = conditional(model, [{'features.4': [2]}], SplitLRP(), start_layer='features.4')
    assert_close(found.heatmap, expected.sum(1))
    assert_close(found.prediction.detach(), shorter(image).detach())
    both = conditional(model, [{'features.4': [2]}, {'dense': [1], 'features.4': [1]}], SplitLRP(), start_layer='dense')
    assert both.heatmap.shape == (2, 8, 8) and both.prediction.shape == (2, 6)


def test_one_forward_pass_for_many_conditions(model):
    conditions = [{'y': [1], 'features.4': [channel]} for channel in range(5)]
    expected = conditional(model, conditions, SplitLRP()).heatmap
    image = random_image(1, 3, 8, 8).requires_grad_()
    found = crp.CondAttribution(model).generate(image, conditions, SplitLRP(), batch_size=2, verbose=False)
    assert_close(torch.cat([each.heatmap for each in found]), expected)


def test_a_map_at_a_layer_has_no_conditions_below(model):
    with pytest.raises(NotImplementedError, match="nothing is differentiated there or below"):
        conditional(model, [{'y': [1], 'features.0': [1]}], SplitLRP(layer='features.4'))


def test_images_that_a_channel_is_most_relevant_for(model, tmp_path):
    visualization = pytest.importorskip('crp.visualization').FeatureVisualization
    images = [(image, index % 3) for index, image in enumerate(random_image(6, 3, 8, 8))]
    layers = {layer: Concept() for layer in ('features.4', 'dense')}
    features = visualization(crp.CondAttribution(model), images, layers, path=str(tmp_path))
    features.run(SplitLRP(), 0, 6, batch_size=3)
    references = features.get_max_reference(
        [0, 2], 'features.4', 'relevance', (0, 2), composite=SplitLRP(), plot_fn=None
    )
    for samples, maps in references.values():
        assert samples.shape == (2, 3, 8, 8) and maps.shape == (2, 8, 8) and maps.isfinite().all() and maps.any()


def test_hooks_that_do_not_change_streams_alike_are_refused(model):
    handle = model.features[4].register_forward_hook(
        lambda module, args, output: output.register_hook(lambda gradient: gradient.abs() + 1.) and None
    )
    with pytest.raises(RuntimeError, match='not linear'):
        conditional(model, [{'y': [1]}], SplitLRP())
    handle.remove()
