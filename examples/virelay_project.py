'''Explain a data set and look at what the explanations have in common: from CIFAR-10 images to a project of ViRelAy.

    python virelay_project.py test_1000.npz resnet20_cifar10.pt --out cifar10
    python -m virelay cifar10/project.yaml

The images are a file of NumPy with the arrays x (N, 32, 32, 3) and y (N,), and the weights the state dict of a
ResNet-20 as He et al. describe it for CIFAR-10. It needs the extra: pip install "zennit-dc[virelay]".
'''
import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from zennit_dc.data.classifiers import IMAGENET_PREPROCESSING, Classifier
from zennit_dc.data.images import ImageArray
from zennit_dc.data.weights import load_weights
from zennit_dc.virelay import analyze, attribute, project


CATEGORIES = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']


class BasicBlock(nn.Module):
    '''Two convolutions and a shortcut, which has no parameters: it skips pixels and adds channels of zeros.'''
    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.padding = stride, (channels - in_channels) // 2

    def forward(self, x):
        '''Run the block.'''
        out = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(out + x)


class ResNet20(nn.Module):
    '''The ResNet-20 for CIFAR-10.'''
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for index, (in_channels, channels, stride) in enumerate([(16, 16, 1), (16, 32, 2), (32, 64, 2)], 1):
            blocks = [BasicBlock(in_channels, channels, stride), *(BasicBlock(channels, channels, 1) for _ in range(2))]
            self.add_module(f'layer{index}', nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        '''The scores of the classes.'''
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def main():
    '''Attributions, their analysis, and the project.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path)
    parser.add_argument('weights', type=Path)
    parser.add_argument('--layer', default='layer2')
    parser.add_argument('--alpha', type=float, default=.4)
    parser.add_argument('--out', type=Path, default=Path('cifar10'), help='the folder of the project')
    args = parser.parse_args()

    model = ResNet20()
    load_weights(model, 'ResNet-20', args.weights)
    preprocessing = IMAGENET_PREPROCESSING(crop_size=32, resize_size=32)
    classifier = Classifier('ResNet-20', model.eval(), preprocessing, CATEGORIES)
    images = ImageArray.load(args.images)

    args.out.mkdir(parents=True, exist_ok=True)
    attribution, analysis, out = (args.out / name for name in ('attribution.h5', 'analysis.h5', 'project.yaml'))
    attribute(
        classifier, images, attribution, method='splitcam', layer=args.layer, alpha=args.alpha, target='label',
        batch_size=50, dtype=torch.float32
    )
    if not analysis.exists():
        analyze(attribution, analysis, clusters=range(2, 7))
    project(attribution, analysis, out, name='SplitCAM on CIFAR-10')
    print(f'open it with: python -m virelay {out}')


if __name__ == '__main__':
    main()
