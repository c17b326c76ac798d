'''Small models, and methods that explain them.'''
import torch
from helpers import random_image
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zennit_dc import SplitCAM, SplitGrad, SplitLRP, SplitTensor


SHAPE = (2, 4, 5, 5)

# with layers of literal.Network
METHODS = {
    'SplitGrad': lambda: SplitGrad(),
    'SplitGrad at a layer': lambda: SplitGrad(.3, '+g', 'conv3'),
    'SplitCAM': lambda: SplitCAM('pool', .3, '+g'),
    'SplitCAM h': lambda: SplitCAM('conv4', .3, 'h', pooling='convex'),
    'SplitLRP': lambda: SplitLRP(1e-3),
    'SplitLRP at a layer': lambda: SplitLRP(1e-3, layer='pool'),
    'SplitLRP at a convolution': lambda: SplitLRP(1e-3, layer='conv2', pooling='convex'),
}


class Small(nn.Module):
    '''A network with batch norm, a residual addition and max-pooling.'''
    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.pool, self.dense = nn.Conv2d(3, 3, 1), nn.MaxPool2d(2), nn.Linear(3, 2)
        self.double().eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x):
        x = F.relu(self.norm(self.conv1(x)))
        return self.dense(F.relu(self.pool(self.conv2(x) + x)).flatten(1))


class UNet(nn.Module):
    '''Downwards by max-pooling, upwards by a transposed convolution and by interpolation, with skip connections.'''
    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)])
        self.bottom = nn.Conv2d(6, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.conv, self.last = nn.Conv2d(12, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.double()

    def forward(self, x):
        one = F.relu(self.down[0](x))
        two = F.relu(self.down[1](F.max_pool2d(one, 2)))
        x = self.up(F.relu(self.bottom(F.max_pool2d(two, 2))))
        x = F.relu(self.conv(torch.cat([x, two], 1)))
        x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
        return self.last(torch.cat([x, one], 1)).mean((2, 3))


def pair_of(shape=SHAPE, seed=1):
    '''A pair of random streams.'''
    return SplitTensor(3 * random_image(*shape, seed=seed), 9 + random_image(*shape, seed=seed + 1).abs())


class Between(nn.Module):
    '''A function between two convolutions.'''
    def __init__(self, function):
        super().__init__()
        self.before, self.behind, self.function = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 3), function
        generator = torch.Generator().manual_seed(0)
        self.double().eval()
        for layer in (self.before, self.behind):
            for parameter in layer.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x):
        return self.behind(self.function(self.before(x).clone())).flatten(1)  # so that maps are read before it


class Calling(nn.Module):
    '''A model that calls a function.'''
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Calls(nn.Module):
    '''A model that calls a function behind a convolution, in a module of its own.'''
    def __init__(self, function):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential()
        self.block.calling = Calling(function)

    def forward(self, x):
        return self.block.calling(self.conv(x))


class Block(nn.Module):
    '''A function, or a checkpoint of it.'''
    def __init__(self, function, saves=False):
        super().__init__()
        self.function, self.saves = function, saves

    def forward(self, x):
        return checkpoint(self.function, x, use_reentrant=False) if self.saves else self.function(x)


def with_layers(*modules):
    '''A network with some modules in it, for images of shape (2, 3, 8, 8).'''
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *modules, nn.Flatten(), nn.Linear(144, 3)).double().eval()
