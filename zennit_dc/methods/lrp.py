'''Layer-wise relevance propagation, as Zennit has it.'''
import torchvision
from zennit.attribution import Gradient
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import EpsilonGammaBox
from zennit.torchvision import ResNetCanonizer

from ..attribution import gradient_at
from ..spatial import spread


def canonizers(model):
    '''Zennit's canonizers that merge the batch norms of a model.'''
    if isinstance(model, torchvision.models.DenseNet):
        return []  # its batch norms stand before the convolutions
    return [ResNetCanonizer() if isinstance(model, torchvision.models.ResNet) else SequentialMergeBatchNorm()]


class LRPGamma(Gradient):
    '''Layer-wise relevance propagation with the gamma rule, as Zennit has it: ``EpsilonGammaBox`` with the normalized
    range of pixels.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    layer : str, optional
        The name of the module at whose output relevance is read and summed over channels: after an activation, if the
        output goes straight into one and nowhere else. The attribution is then its bilinear upsampling to the input's
        size, divided evenly among the input's channels. Default is the input.
    grid : tuple of int, optional
        The height and width of the grid of tokens at the layer, where they cannot be found from the input's.
    '''
    def __init__(self, classifier, layer=None, grid=None):
        super().__init__(classifier.model)
        self.preprocessing = classifier.preprocessing
        self.layer, self.grid = layer, grid

    def forward(self, input, attr_output_fn):
        '''Compute the relevance, see :py:class:`zennit.attribution.Gradient`.'''
        if len(self.preprocessing.mean) != input.shape[1]:
            raise ValueError(
                f'LRP-γ needs the mean and std of {input.shape[1]} channels, but has {len(self.preprocessing.mean)}'
            )
        mean, std = (
            input.new_tensor(values).view(-1, 1, 1) for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        low, high = (((value - mean) / std).expand_as(input) for value in (0., 1.))
        composite = EpsilonGammaBox(low=low, high=high, canonizers=canonizers(self.model))
        with composite.context(self.model):
            if self.layer is None:
                return super().forward(input, attr_output_fn)
            output, relevance, _ = gradient_at(self.model, self.layer, input, attr_output_fn, self.grid)
        return output, spread(relevance.sum(1, keepdim=True), input)
