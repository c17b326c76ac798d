'''Monotone and input-convex networks, and their trained differences (section 3.5 and appendix D of the paper).

A network can be trained as g - h, with non-negative weights, and then needs no split: its streams are the two networks.
Where h sees the inverted image, g shows the strokes that are there, and h those that are missing. For ``images`` of
shape (count, 1, 28, 28) and their ``labels``::

    from torch import nn
    from zennit.attribution import Gradient
    from zennit_dc import SplitGrad
    from zennit_dc.attribution import class_relevance
    from zennit_dc.networks import DifferenceOfConvex, Maxout, accuracy, nonnegative, train

    def monotone():
        layers = nn.Flatten(), nn.Linear(784, 800), nn.BatchNorm1d(800), Maxout(2), nn.Linear(400, 10)
        return nonnegative(nn.Sequential(*layers))

    model = train(DifferenceOfConvex(monotone(), monotone(), invert=True), images, labels, epochs=8)
    print(accuracy(model, images, labels))
    output, missing = Gradient(model, SplitGrad(alpha=0., stream='h'))(images[:8] / 255., class_relevance())

``mlp_maxout('dicin')`` and ``cnn_maxout('dicin')`` are the paper's networks.
'''
from .architectures import VARIANTS, MaxoutNetwork, cnn_maxout, mlp_maxout
from .difference import Difference, DifferenceOfConvex
from .layers import TRANSFORMS, FreeConv2d, FreeLinear, Maxout, Positive, effective, nonnegative
from .train import accuracy, train


__all__ = [
    'TRANSFORMS', 'VARIANTS', 'Difference', 'DifferenceOfConvex', 'FreeConv2d', 'FreeLinear', 'Maxout', 'MaxoutNetwork',
    'Positive', 'accuracy', 'cnn_maxout', 'effective', 'mlp_maxout', 'nonnegative', 'train',
]
