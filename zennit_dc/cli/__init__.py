'''The command line: ``zennit-dc``.'''
import os
import sys
import textwrap
import warnings
from functools import partial

import click

from ..data.progress import begin
from .data import analyze, attribute, project
from .demo import demo
from .evaluation import evaluate
from .maps import explain, layers
from .versions import show_versions


class Commands(click.Group):
    '''A group of commands that end with one line when something is wrong.'''
    def invoke(self, ctx):
        '''Run a command. Ctrl-C ends it with one line, and a warning is one, once.'''
        try:
            begin()
            with warnings.catch_warnings():
                warnings.showwarning = partial(warn, set())
                return super().invoke(ctx)
        except KeyboardInterrupt:
            if sys.stderr.isatty():  # which shows what was typed
                click.echo(err=True)
            fail('interrupted', 130)

    def main(self, *args, **kwargs):
        '''Run, and print the reason of an error in one line.'''
        try:
            sys.exit(super().main(*args, standalone_mode=False, **kwargs))
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(error.exit_code)
        except click.MissingParameter as error:
            fail(f'{error.format_message()} {error.ctx.command_path} --help says what it takes', error.exit_code)
        except click.ClickException as error:
            fail(error.format_message(), error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            fail('interrupted', 130)
        except Exception as error:
            if os.environ.get('ZENNIT_DC_TRACEBACK'):
                raise
            fail(reason_of(error))


def reason_of(error):
    '''What went wrong, in one line.'''
    if isinstance(error, ModuleNotFoundError):
        extra = 'evaluation' if error.name in ('captum', 'quantus', 'pandas') else 'virelay'
        named = 'pip install' in str(error)
        return str(error) if named else f'{error}: the command needs an extra, pip install "zennit-dc[{extra}]"'
    if isinstance(error, OSError):  # without its number, unless it is all that there is
        return f'{error.filename}: {error.strerror}' if error.filename else error.strerror or str(error)
    if isinstance(error, (ArithmeticError, MemoryError, RuntimeError, ValueError)):
        return str(error) or type(error).__name__
    return f'{type(error).__name__}: {error} (ZENNIT_DC_TRACEBACK=1 shows where)'  # of a model of one's own


def warn(told, message, *_):
    '''Print a warning in one line, and add it to those that were printed.'''
    if str(message) not in told:
        told.add(str(message))
        click.echo(f'zennit-dc: warning: {message}', err=True)


def fail(reason, status=1):
    '''End with one line.'''
    click.echo(f'zennit-dc: error: {textwrap.shorten(reason, 500, placeholder=" ...")}', err=True)
    sys.exit(status)


@click.group(
    cls=Commands, commands=[demo, explain, layers, attribute, analyze, project, evaluate],
    context_settings={'help_option_names': ['-h', '--help'], 'show_default': True, 'max_content_width': 110}
)
@click.option(
    '--version', is_flag=True, is_eager=True, expose_value=False, callback=show_versions,
    help='Show the versions of zennit-dc, Python, PyTorch and Zennit, and exit.'
)
def main():
    '''Explain neural networks by their DC decomposition: SplitLRP, SplitGrad and SplitCAM.

    \b
    zennit-dc demo
    zennit-dc explain dog.jpg --model vgg16 --layer features.26

    An error is one line. Where it comes from is shown if the variable ZENNIT_DC_TRACEBACK is 1.
    '''
