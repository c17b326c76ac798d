'''The command that shows six methods at work on fresh drawings.'''
from pathlib import Path

import click

from .arguments import hold, require_compute
from .options import compute_options, option


@click.command()
@option('--out', default='demo', type=click.Path(path_type=Path, file_okay=False), help='The folder.')
@option('--images', default=200, type=click.IntRange(10), help='The number of images to draw.')
@compute_options
def demo(out, images, device, dtype, seed):
    '''See six methods at work on images that are drawn on the spot.

    A small network comes with the package, which tells drawn, textured objects apart. Fresh images are drawn, of which
    it is known where the object is; six methods explain them. Writes a figure, and prints how often the largest value
    of a map is on the object (the pointing game), how much of its positive part is, and what these numbers favor. No
    downloads.

    \b
    zennit-dc demo
    zennit-dc demo --out pictures --images 500 --seed 3
    '''
    from .report import report

    hold(out)
    device, dtype = require_compute(device, dtype, seed)
    click.echo(report(out, images, device, dtype, seed))
