'''Explain what SqueezeNet sees in a photograph, with the composites themselves.

    python explain_photo.py [PHOTOGRAPH [WEIGHTS]]

Saves splitgrad.png, splitcam.png and splitlrp.png: red speaks for the predicted class rather than for the other likely
ones, and blue for those. Without a file of weights, torchvision downloads its own. The command zennit-dc explain does
this for any classifier, method and layer.
'''
import argparse
from pathlib import Path

import torch
from PIL import Image
from torchvision.models import SqueezeNet1_0_Weights, squeezenet1_0
from zennit.attribution import Gradient
from zennit.image import imsave

from zennit_dc import SplitCAM, SplitGrad, SplitLRP, contrast


COMPOSITES = {
    'splitgrad': SplitGrad(), 'splitcam': SplitCAM('features.12'), 'splitlrp': SplitLRP(stream='positive')
}


def arguments():
    '''The arguments of the command line.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'photograph', nargs='?', type=Path, default=Path(__file__).with_name('coffee.jpg'),
        help='the image (default: the coffee beside this script)'
    )
    parser.add_argument('weights', nargs='?', type=Path, help='a state dict (default: torchvision\'s, of ImageNet)')
    return parser.parse_args()


def main(photograph, weights):
    '''Save the maps, and print what the model sees.'''
    pretrained = SqueezeNet1_0_Weights.DEFAULT
    model = squeezenet1_0(weights=pretrained if weights is None else None).eval()
    if weights is not None:
        model.load_state_dict(torch.load(weights, map_location='cpu', weights_only=True))
    input = pretrained.transforms()(Image.open(photograph).convert('RGB'))[None]

    for name, composite in COMPOSITES.items():
        with Gradient(model, composite) as attributor:
            output, attribution = attributor(input, contrast(against='likely'))
        imsave(f'{name}.png', attribution.sum(1)[0], symmetric=True, cmap='bwr')
    print(pretrained.meta['categories'][output.argmax()])


if __name__ == '__main__':
    main(**vars(arguments()))
