'''Measure time and memory of the methods, as multiples of the plain gradient's.

    python benchmark.py --models vgg16 resnet18 --batch 2 --rounds 7
    python benchmark.py --methods SplitGrad SplitLRP

The models have random weights. The time is for the whole call: entering the composite's context, forward and
backward. Its ratio is the median over rounds, each of which times the gradient and the method one after the other, so
that the ratio for the gradient itself says how far to trust the others. Memory is the peak of one call: on a GPU that
which PyTorch has allocated, on a CPU the resident size of a process of its own; and its increase over that before. In
that process glibc returns the memory of each large tensor at once, since what it keeps else varies by a third.
'''
import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial

import torch
import torchvision
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from zennit_dc import SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import LayerCAM
from zennit_dc.data.classifiers import IMAGENET_PREPROCESSING, Classifier
from zennit_dc.methods.lrp import LRPGamma, canonizers


LAYERS = {'vgg16': 'features.26', 'resnet18': 'layer4'}
BASELINE = 'Saliency'
METHODS = {
    'Model splitting': lambda model, layer: partial(split, SplitGrad(), model),
    BASELINE: lambda model, layer: Gradient(model),
    'LayerCAM': LayerCAM,
    'LRP-γ (EpsilonGammaBox)': lambda model, layer: LRPGamma(Classifier('', model, IMAGENET_PREPROCESSING())),
    'LRP (EpsilonPlus)': lambda model, layer: Gradient(model, EpsilonPlus(canonizers=canonizers(model))),
    'SplitGrad': lambda model, layer: Gradient(model, SplitGrad()),
    'SplitCAM': lambda model, layer: Gradient(model, SplitCAM(layer)),
    'SplitLRP': lambda model, layer: Gradient(model, SplitLRP()),
}


def split(composite, model, input, relevance):
    '''Bring a model into split form and back.'''
    with composite.context(model):
        pass


def load(name, args):
    '''A model with random weights, an input and the relevance of its first class.'''
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(args.device, getattr(torch, args.dtype))
    input = torch.rand(args.batch, 3, 224, 224).to(next(model.parameters()))
    return model, input, torch.eye(1000)[[0] * args.batch].to(input)


def seconds(call, device):
    '''The time of a call.'''
    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def times(name, args):
    '''For each method, the median of its time over the gradient's, and the median of its time.'''
    model, input, relevance = load(name, args)
    calls = {method: partial(METHODS[method](model, LAYERS[name]), input, relevance) for method in args.methods}
    results = {}
    for method, call in calls.items():
        for warm_up in (calls[BASELINE], call):
            warm_up()
        pairs = [[seconds(each, args.device) for each in (calls[BASELINE], call)] for _ in range(args.rounds)]
        results[method] = (
            statistics.median(own / gradient for gradient, own in pairs), statistics.median(own for _, own in pairs)
        )
    return results


def peak_resident():
    '''The largest resident size of this process so far, in bytes.'''
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def memory(name, method, args):
    '''The memory in bytes before the first call of a method, and the peak in it.'''
    model, input, relevance = load(name, args)
    call = METHODS[method](model, LAYERS[name])
    if args.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(args.device)
        before = torch.cuda.memory_allocated(args.device)
        call(input, relevance)
        return before, torch.cuda.max_memory_allocated(args.device)
    before = peak_resident()
    call(input, relevance)
    return before, peak_resident()


def memory_apart(name, method):
    '''The memory of a method in a process of its own.'''
    command = [sys.executable, __file__, *sys.argv[1:], '--measure', name, method]
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '1000000'}
    measured = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    before, peak = measured.split()
    return int(before), int(peak)


def table(name, timings, memories):
    '''The rows of a model.'''
    gradient_before, gradient_peak = memories[BASELINE]
    for method, (ratio, median) in timings.items():
        before, peak = memories[method]
        yield (
            f'| {name} | {method} | {ratio:.2f} | {median:.4f} | {peak / 2 ** 20:.0f} | {peak / gradient_peak:.2f}'
            f' | {(peak - before) / 2 ** 20:.0f} | {(peak - before) / (gradient_peak - gradient_before):.2f} |'
        )


def main():
    '''Measure, and print a table in Markdown.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=list(LAYERS), choices=LAYERS)
    parser.add_argument(
        '--methods', nargs='+', default=list(METHODS), choices=METHODS, help=f'default: all; {BASELINE} is always one'
    )
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--device', type=torch.device, default=torch.device('cpu'))
    parser.add_argument('--dtype', default='float32', choices=('float32', 'float64', 'bfloat16', 'float16'))
    parser.add_argument('--threads', type=int, help='the number of threads on the CPU (default: as PyTorch chooses)')
    parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.methods = [method for method in METHODS if method in (BASELINE, *args.methods)]
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.measure:
        print(*memory(*args.measure, args))
        return

    # memory first, as the peak of a new process starts with the size of the one that it comes from
    memories = {name: {method: memory_apart(name, method) for method in args.methods} for name in args.models}
    print('| model | method | time / gradient | seconds | peak MiB | / gradient | increase MiB | / gradient |')
    print('|---|---|---|---|---|---|---|---|')
    for name in args.models:
        print(*table(name, times(name, args), memories[name]), sep='\n', flush=True)


if __name__ == '__main__':
    main()
