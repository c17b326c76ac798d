'''Many programs, all properties, and a table of what was found.'''
import re
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from .checks import CHECKS, Inapplicable
from .families import FAMILIES
from .programs import generate


class Result:
    '''What became of some programs.

    Attributes
    ----------
    graphs, pairs : int
        The number of programs, and of those pairs of a program and a property that were compared.
    families, refused, inapplicable : :py:class:`collections.Counter`
        How many programs have each family; those that were refused, by the function's name; and how often each property
        did not apply.
    failures : list of tuple
        The seed, the property, the kind of error and its message.
    '''
    def __init__(self):
        self.graphs, self.seconds = 0, 0.
        self.families, self.refused, self.inapplicable, self.held = Counter(), Counter(), Counter(), Counter()
        self.failures = []

    def __iadd__(self, other):
        self.graphs += other.graphs
        self.seconds += other.seconds
        for name in ('families', 'refused', 'inapplicable', 'held'):
            getattr(self, name).update(getattr(other, name))
        self.failures += other.failures
        return self

    def __str__(self):
        lines = [f'{self.graphs} graphs in {self.seconds:.0f} s of one core, {sum(self.held.values())} properties held']
        lines += ['held: ' + listed(self.held), 'said nothing: ' + listed(self.inapplicable)]
        lines += ['families: ' + listed(self.families), 'refused: ' + listed(self.refused)]
        lines += [f'{len(self.failures)} failures'] + [
            f'  {seed:6} {name:16} {kind}: {message.splitlines()[0]}'
            for seed, name, kind, message in sorted(self.failures)
        ]
        return '\n'.join(lines)


def listed(counter):
    return ', '.join(f'{name} {count}' for name, count in counter.most_common())


def try_program(program, seed, names=tuple(CHECKS)):
    '''Check the properties of one program.'''
    result = Result()
    result.graphs = 1
    result.families.update({step.family for step in program.steps})
    refused = set()
    for name in names:
        kind, message = outcome(program, seed, name)
        if kind == 'refused':
            refused.add(message)
        elif kind == 'inapplicable':
            result.inapplicable[name] += 1
        elif kind == 'held':
            result.held[name] += 1
        elif (kind, message) not in [failure[2:] for failure in result.failures]:
            result.failures.append((seed, name, kind, message))
    result.refused.update(refused)
    return result


def outcome(program, seed, name):
    '''What a property says of a program: 'held', 'refused', 'inapplicable' or an error's name, and a message.'''
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            CHECKS[name](program, seed)
        except Inapplicable:
            return 'inapplicable', ''
        except NotImplementedError as error:
            if 'without a batch axis' in str(error):  # of one sample whose axis the program has squeezed
                return 'inapplicable', ''
            return 'refused', re.split(r', called|, has| with a rounding', str(error))[0]
        except Exception as error:
            if 'score does not depend on the input' in str(error):  # a map of zeros, of weights that are zero
                return 'inapplicable', ''
            return type(error).__name__, str(error) or repr(error)
    return 'held', ''


def try_seed(seed, device='cpu'):
    '''Check all properties of the program of a seed.'''
    torch.set_num_threads(1)
    start = time.process_time()
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        result = try_program(generate(seed, FAMILIES).on(device), seed)
    result.seconds = time.process_time() - start
    return result


def run(seeds, processes=1, report=None, device='cpu'):
    '''Check the programs of seeds, on several processes.'''
    total, attempt = Result(), partial(try_seed, device=device)
    if processes == 1:
        results = map(attempt, seeds)
    else:
        pool = ProcessPoolExecutor(processes)
        results = pool.map(attempt, seeds, chunksize=10)
    for result in results:
        total += result
        if report is not None:
            report(total, result)
    return total


def shrunk(program, seed, name):
    '''A smaller program for which the property fails in the same way.'''
    kind = outcome(program, seed, name)[0]
    smaller = True
    while smaller:
        smaller = False
        for candidate in reductions(program):
            if valid(candidate) and outcome(candidate, seed, name)[0] == kind:
                program, smaller = candidate, True
                break
    return program


def valid(program):
    '''Whether torch itself runs the program.'''
    try:
        program(*(input.requires_grad_() for input in program.inputs())).sum().backward()
        return True
    except (RuntimeError, IndexError):
        return False
    finally:
        program.zero_grad()


def reductions(program):
    '''Programs with one step less.'''
    shapes = dict(zip(program.names, program.shapes))
    shapes.update({step.output: tuple(value.shape) for step, value, *_ in program.trace(program.inputs())})
    for step in program.steps:
        if len(shapes[step.output]) > 1 and shapes[step.output][0] == program.batch and step.output != program.output:
            candidate = program.with_steps(program.steps, step.output).pruned()
            if len(candidate.steps) < len(program.steps):
                yield candidate
    for index, step in reversed(list(enumerate(program.steps))):
        for name in step.inputs:
            if shapes[name] == shapes[step.output]:
                yield renamed(program, index, name)


def renamed(program, index, name):
    '''The program without a step, with another value in place of its result.'''
    removed, steps = program.steps[index].output, []
    for step in [*program.steps[:index], *program.steps[index + 1:]]:
        step = step.copy(tuple(name if each == removed else each for each in step.inputs))
        steps.append(step)
    output = name if program.output == removed else program.output
    return program.with_steps(steps, output).pruned()
