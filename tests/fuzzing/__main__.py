'''Check many random programs: ``python -m tests.fuzzing --graphs 20000 --processes 2``.'''
import argparse
import os

import torch

from .campaign import outcome, run, shrunk
from .families import FAMILIES
from .programs import generate


def main():
    parser = argparse.ArgumentParser(prog='python -m tests.fuzzing', description=__doc__.split(':')[0])
    parser.add_argument('--graphs', type=int, default=1000)
    parser.add_argument('--first-seed', type=int, default=0)
    parser.add_argument('--processes', type=int, default=os.cpu_count())
    parser.add_argument('--device', default='cpu', help='where the programs run, which are made on the CPU')
    parser.add_argument('--show', action='store_true', help='show each failure with a program as small as possible')
    options = parser.parse_args()
    torch.set_num_threads(1)

    def report(total, result):
        if options.show and not result.failures and options.graphs == 1:
            print(generate(options.first_seed, FAMILIES).listing())
        for seed, name, _, message in result.failures:
            print(f'{seed} {name}: {message.splitlines()[0]}', flush=True)
            if options.show:
                program = shrunk(generate(seed, FAMILIES).on(options.device), seed, name)
                print(program.listing(), outcome(program, seed, name)[1].splitlines()[0], sep='\n', flush=True)
        if total.graphs % 1000 == 0:
            print(f'{total.graphs} graphs, {len(total.failures)} failures', flush=True)

    seeds = range(options.first_seed, options.first_seed + options.graphs)
    print(run(seeds, options.processes, report, options.device))


if __name__ == '__main__':
    main()
