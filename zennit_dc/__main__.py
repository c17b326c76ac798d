'''``python -m zennit_dc``: the command line.'''
from .cli import main


main(prog_name='zennit-dc')
