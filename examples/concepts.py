'''Which channels of a layer speak for a class, and where: SplitLRP conditioned on channels, by zennit-crp.

    pip install --no-deps zennit-crp
    python concepts.py [--layer features.9] [--channels 4] [--out concepts.png]

For some drawings of the demo, the figure shows the map of the drawn class, and the maps through the channels with the
most relevance. The maps of all channels sum to the map of the class. (zennit-crp asks for an older Zennit than this
package needs, with which it works as well, thence --no-deps.)
'''
import argparse
from pathlib import Path

import torch
from PIL import Image

from zennit_dc import SplitLRP
from zennit_dc.data import load_classifier
from zennit_dc.demo import CLASSES, draw
from zennit_dc.figures import color, save, side_by_side


DRAWINGS = (0, 3, 7)
SEED = 2  # of drawings that the demo's network was not trained on


def arguments():
    '''The arguments of the command line.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--layer', default='features.9', help='the layer of the channels (default: features.9)')
    parser.add_argument('--channels', type=int, default=4, help='how many of them to show (default: 4)')
    parser.add_argument('--out', default='concepts.png', type=Path, help='the figure (default: concepts.png)')
    return parser.parse_args()


def row(classifier, attribution, index, layer, count):
    '''A drawing, and its maps by their titles.'''
    drawing = draw(SEED, index)
    image = classifier.preprocessing(Image.fromarray(drawing.image))[None].requires_grad_()
    whole = attribution(image, [{'y': [drawing.label]}], SplitLRP(), record_layer=[layer])
    relevance = whole.relevances[layer][0].flatten(1).sum(1)
    channels = relevance.topk(count).indices.tolist()
    conditions = [{'y': [drawing.label], layer: [channel]} for channel in channels]
    maps = attribution(image, conditions, SplitLRP()).heatmap
    titles = [f'{place}. channel' for place in range(1, count + 1)]
    shares = ', '.join(f'{channel} ({relevance[channel] / relevance.sum():.0%})' for channel in channels)
    print(f'{CLASSES[drawing.label]}: channels {shares} of {layer}')
    shown = {'the class': color(whole.heatmap[0].detach()), **{
        title: color(map) for title, map in zip(titles, maps.detach())
    }}
    return CLASSES[drawing.label], drawing.image, shown


def main(layer, channels, out):
    '''Save the figure, and print the channels.'''
    from crp.attribution import CondAttribution

    torch.manual_seed(0)
    classifier = load_classifier('demo')
    attribution = CondAttribution(classifier.model)
    rows = [row(classifier, attribution, index, layer, channels) for index in DRAWINGS]
    save(side_by_side(rows, f'relevance of the class, and of it what goes through channels of {layer}'), out)


if __name__ == '__main__':
    main(**vars(arguments()))
