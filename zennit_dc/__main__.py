'''``python -m zennit_dc``: the command line.'''
import sys


def main():
    '''Run the command line. Ctrl-C is one line, also while it is imported.'''
    try:
        from .cli import main as run

        run(prog_name='zennit-dc')
    except KeyboardInterrupt:
        sys.stderr.write('zennit-dc: error: interrupted\n')
        sys.exit(130)


if __name__ == '__main__':
    main()
