'''The versions that matter for a map.'''
import platform

import click


PACKAGES = ('torch', 'torchvision', 'zennit')


def show_versions(context, parameter, asked):
    '''Print this package's version in a line, and in another those of Python and of what it builds on, and end.'''
    if not asked or context.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f'zennit-dc, version {version("zennit-dc")}')
    click.echo(', '.join([f'Python {platform.python_version()}', *(f'{name} {version(name)}' for name in PACKAGES)]))
    context.exit()
