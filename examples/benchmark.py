'''Measure time and memory of the methods, as multiples of the plain gradient's.

    python benchmark.py --out speed
    python benchmark.py --out speed --device cuda
    python benchmark.py --recorded --models resnet18 --threads 1 --rounds 15 --seconds 10 --out replays
    python benchmark.py --models resnet50 --batch 16 --alpha 0.4 --methods SplitGrad SplitCAM --device cuda

Prints a table, and with --out writes it into the page beside this folder, speed.md, in the part that is named after the
measurement: cpu-2 is the default, and cuda-64 is of 64 images on a GPU. What you write around the parts is kept. All
that was measured is a CSV file of the same name in the folder.

The models have random weights. The time is for the whole call: entering the composite's context, forward and
backward. Its ratio is the median over rounds, with the least and the largest one. In a round, each method is called
once, and the gradient right before it, so that the ratio for the gradient itself says how far to trust the others. Each
image explains a class of its own. Memory is the peak of one call: on a GPU what PyTorch has allocated, on a CPU the
resident size of a process of its own; and its increase over that before. In that process glibc returns the memory of
each large tensor at once, since what it keeps else varies by a third. A method that refuses a model has a dash in the
table, and its reason is named below it.

With --recorded, each method is measured beside a replay of its call, for all sizes and batches, and time alone. What a
recording takes is no part of that. The page is one of its own, replays.md beside the folder replays, with three
sentences made of the numbers; the part of the table is named after the device.
'''
import argparse
import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torchvision
from zennit.attribution import Gradient
from zennit.composites import EpsilonPlus

from zennit_dc import Balanced, SplitCAM, SplitGrad, SplitLRP
from zennit_dc.attribution import LayerCAM, Recorded
from zennit_dc.data.classifiers import IMAGENET_PREPROCESSING, Classifier, last_layer
from zennit_dc.evaluation.pages import command_line, page_beside, read_csv, save_csv, table, update_page
from zennit_dc.methods.attributors import DeepLift, GradCAM
from zennit_dc.methods.lrp import LRPGamma, canonizers


LAYERS = {'vgg16': 'features.26', 'resnet18': 'layer4'}
BASELINE = 'Saliency'
METHODS = {
    'Model splitting': lambda model, layer, args: partial(split, SplitGrad(), model),
    BASELINE: lambda model, layer, args: Gradient(model),
    'LayerCAM': lambda model, layer, args: LayerCAM(model, layer),
    'Grad-CAM (Captum)': lambda model, layer, args: GradCAM(model, layer),
    'DeepLift (Captum)': lambda model, layer, args: DeepLift(model),
    'LRP-γ (EpsilonGammaBox)': lambda model, layer, args: LRPGamma(Classifier('', model, preprocessing(args))),
    'LRP (EpsilonPlus)': lambda model, layer, args: Gradient(model, EpsilonPlus(canonizers=canonizers(model))),
    'SplitGrad': lambda model, layer, args: ours(model, args, SplitGrad),
    'SplitCAM': lambda model, layer, args: ours(model, args, SplitCAM, layer),
    'SplitLRP': lambda model, layer, args: ours(model, args, SplitLRP),
}
RECORDED = {f'{method}, recorded': method for method in (
    BASELINE, 'LRP (EpsilonPlus)', 'SplitGrad', 'SplitCAM', 'SplitLRP'
)}
SIZES, BATCHES = (8, 32, 224), (1, 16, 64)
TITLES = {
    BASELINE: 'gradient', 'LRP (EpsilonPlus)': 'EpsilonPlus', 'SplitGrad': 'SplitGrad', 'SplitLRP': 'SplitLRP'
}
'''The columns of the table of replays. All others are in the CSV file.'''
LEAST_ROUNDS = 3
REFUSALS = (ModuleNotFoundError, NotImplementedError, RuntimeError, ValueError)


def ours(model, args, composite, *parameters):
    '''An attributor with a composite. That of a sensitivity has the given shift.'''
    own = {} if composite is SplitLRP else {'alpha': Balanced() if args.alpha is None else args.alpha}
    return Gradient(model, composite(*parameters, **own))


def attributor_of(method, model, layer, args):
    '''The attributor of a method, or of its recording.'''
    if method not in RECORDED:
        return METHODS[method](model, layer, args)
    plain = METHODS[RECORDED[method]](model, layer, args)
    return Recorded(model, plain.composite)


def split(composite, model, input, relevance):
    '''Bring a model into split form and back.'''
    with composite.context(model):
        pass


def preprocessing(args):
    '''The preprocessing for images of the given size.'''
    return IMAGENET_PREPROCESSING(crop_size=args.size, resize_size=args.size)


def load(name, args):
    '''A model with random weights, the layer of its maps, an input, and the relevances that enter.'''
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval().to(args.device, getattr(torch, args.dtype))
    input = torch.rand(args.batch, 3, args.size, args.size).to(next(model.parameters()))
    layer = LAYERS.get(name) or last_layer(Classifier(name, model, preprocessing(args)), input.device, input.dtype)
    classes = [index % 1000 for index in range(args.batch)]
    return model, layer, input, torch.eye(1000)[classes].to(input)


def seconds(call, device):
    '''The time of a call.'''
    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def times(name, methods, args):
    '''For each method, its times over the gradient's in all rounds, and the median of its time. The gradient is called
    before each method, of which a recording follows the plain call.'''
    model, layer, input, relevance = load(name, args)
    calls = {method: partial(attributor_of(method, model, layer, args), input, relevance) for method in methods}
    for call in calls.values():  # to warm up, and to record
        call()
    rounds, start = [], time.perf_counter()
    while len(rounds) < args.rounds:
        if args.seconds and len(rounds) >= LEAST_ROUNDS and time.perf_counter() - start > args.seconds:
            break
        rounds.append({})
        for method, call in calls.items():
            if method not in RECORDED:
                gradient = seconds(calls[BASELINE], args.device)
            rounds[-1][method] = gradient, seconds(call, args.device)
    pairs = {method: [each[method] for each in rounds] for method in calls}
    return {
        method: ([own / gradient for gradient, own in pair], statistics.median(own for _, own in pair))
        for method, pair in pairs.items()
    }


def peak_resident():
    '''The largest resident size of this process so far, in bytes.'''
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def memory(name, method, args):
    '''The memory in bytes before the first call of a method, and the peak in it.'''
    model, layer, input, relevance = load(name, args)
    call = attributor_of(method, model, layer, args)
    if args.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(args.device)
        before = torch.cuda.memory_allocated(args.device)
        call(input, relevance)
        return before, torch.cuda.max_memory_allocated(args.device)
    before = peak_resident()
    call(input, relevance)
    return before, peak_resident()


def memory_apart(name, method):
    '''The memory of a method in a process of its own, or the reason why it refuses the model.'''
    command = [sys.executable, __file__, *sys.argv[1:], '--measure', name, method]
    environment = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': '1000000'}
    measured = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    before, peak = measured.splitlines()[-1].split(maxsplit=1)
    return peak if before == 'refused' else (int(before), int(peak))


def measure(name, method, args):
    '''Print the memory of a method, or why it refuses the model.'''
    try:
        print(*memory(name, method, args))
    except REFUSALS as error:
        if method == BASELINE or method.startswith('Split') or isinstance(error, torch.OutOfMemoryError):
            raise
        print('refused', ' '.join(str(error).split()))


def processor():
    '''The name of the processor.'''
    path = Path('/proc/cpuinfo')
    lines = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def name_of(args):
    '''The name of a measurement.'''
    return args.device.type if args.recorded else f'{args.device.type}-{args.batch[0]}'


def conditions(args):
    '''On what was measured when, the beginning of a sentence.'''
    count = torch.get_num_threads()
    cpu = f'{count} thread{"s" * (count > 1)} of {processor()}'
    device = torch.cuda.get_device_name(args.device) if args.device.type == 'cuda' else cpu
    today = datetime.datetime.now(datetime.timezone.utc)
    return f'Measured on {today:%Y-%m-%d}: PyTorch {torch.__version__}, {device}, {args.dtype}'


def description(args):
    '''What was measured when and where, in a sentence.'''
    shift = '' if args.alpha is None else f', α = {args.alpha:g}'
    return (
        f'{conditions(args)}, {args.batch} images of {args.size} × {args.size}, each of another class{shift};'
        f' medians of {args.rounds} rounds.'
    )


COLUMNS = [
    'model', 'method', 'time', 'least', 'most', 'seconds', 'images_per_second', 'peak_mib', 'peak', 'increase_mib',
    'increase', 'measured'
]


def rows_of(name, timings, memories, args):
    '''The rows of a model: time, peak and increase are multiples of the gradient's.'''
    gradient_before, gradient_peak = memories[BASELINE]
    for method, (ratios, median) in timings.items():
        before, peak = memories[method]
        yield (
            name, method, statistics.median(ratios), min(ratios), max(ratios), median, args.batch / median,
            peak / 2 ** 20, peak / gradient_peak, (peak - before) / 2 ** 20,
            (peak - before) / (gradient_peak - gradient_before), description(args)
        )


def part(measured):
    '''The part of the page, of the numbers of a measurement: time and memory of each method and model.'''
    found = measured.set_index(['method', 'model'])[['time', 'increase']]
    models = list(dict.fromkeys(measured['model']))
    return table(['time / memory', *models], [[method, *(
        '{:.2f} / {:.2f}'.format(*found.loc[(method, model)]) if (method, model) in found.index else '–'
        for model in models
    )] for method in dict.fromkeys(measured['method'])]) + f'\n\n{measured["measured"].iloc[0]}'


RECORDED_COLUMNS = [
    'model', 'size', 'batch', 'method', 'time', 'lower', 'upper', 'least', 'most', 'seconds', 'images_per_second',
    'rounds', 'measured'
]


def recorded_rows(name, args):
    '''The rows of a model with replays for one size and batch: time as multiples of the gradient's, with quartiles.'''
    for method, (ratios, median) in times(name, args.methods, args).items():
        lower, middle, upper = statistics.quantiles(ratios, n=4, method='inclusive') if len(ratios) > 1 else ratios * 3
        yield (
            name, args.size, args.batch, method, middle, lower, upper, min(ratios), max(ratios), median,
            args.batch / median, len(ratios), f'{conditions(args)}, each image of another class.'
        )


def recorded_part(measured):
    '''The table of replays: a row for each size and batch, and plain calls beside replays.'''
    found = measured.set_index(['size', 'batch', 'method'])['time']
    titles = {method: title for method, title in TITLES.items() if method in set(measured['method'])}
    rows = [[f'{batch} of {size} px', *(
        ' / '.join(f'{found[size, batch, each]:.2f}' for each in (method, f'{method}, recorded')) for method in titles
    )] for size, batch in dict.fromkeys(zip(measured['size'], measured['batch']))]
    spread = ((measured['upper'] - measured['lower']) / measured['time']).groupby(measured['method']).median()
    rounds = f'{measured["rounds"].min()} to {measured["rounds"].max()}'
    return '\n\n'.join([table(['plain/replay', *titles.values()], rows), textwrap.fill(
        f'{measured["measured"].iloc[0]} Medians of {rounds} rounds; quartiles are apart by {spread.max():.0%} of them'
        f' or less, in the median over rows. Model: {measured["model"].iloc[0]}.', 120
    )])


def recorded_message(measured):
    '''Three sentences on replays.'''
    def span(method):
        found = measured.loc[measured['method'] == method, 'time']
        return f'{found.min():.2f} to {found.max():.2f}'

    model, replay = measured['model'].iloc[0], '{}, recorded'.format
    return textwrap.fill(
        f'A replay of SplitGrad takes {span(replay("SplitGrad"))} plain gradients of {model}, and one of SplitLRP'
        f' {span(replay("SplitLRP"))}. Plain calls take {span("SplitGrad")} and {span("SplitLRP")}, the most for small'
        f' images. Zennit\'s EpsilonPlus takes {span("LRP (EpsilonPlus)")}, and'
        f' {span(replay("LRP (EpsilonPlus)"))} where it is replayed.', 120
    )


def recorded_parts(name, measured):
    '''The parts of the page of replays. Sentences are made where all that they are about was measured.'''
    is_complete = {*TITLES, *(f'{method}, recorded' for method in TITLES)} <= {*measured['method']}
    return {**({'message': recorded_message(measured)} if is_complete else {}), name: recorded_part(measured)}


def parts(folder):
    '''The parts of the page, by the names of the measurements in a folder.'''
    tables = {path.stem: read_csv(path) for path in sorted(folder.glob('*.csv'))}
    made = (recorded_parts(*each) if 'rounds' in each[1] else {each[0]: part(each[1])} for each in tables.items())
    return {name: text for parts in made for name, text in parts.items()}


def chosen_methods(args):
    '''The methods to measure, each followed by its recording if that is asked for.'''
    chosen = {BASELINE, *(args.methods or (TITLES if args.recorded else METHODS))}
    rows = [{method, f'{method}, recorded'} for method in METHODS]
    return [each for row in rows if chosen & row for each in sorted(row) if each in METHODS or (
        each in RECORDED and (args.recorded or each in chosen)
    )]


def with_setting(args, size, batch):
    '''The arguments for one size and batch.'''
    return argparse.Namespace(**{**vars(args), 'size': size, 'batch': batch})


def measure_recorded(args):
    '''Measure replays, print a table, and write it.'''
    found = pd.DataFrame([
        row for size in args.size for batch in args.batch
        for row in recorded_rows(args.models[0], with_setting(args, size, batch))
    ], columns=RECORDED_COLUMNS)
    made = recorded_parts(name_of(args), found)
    print(*made.values(), sep='\n\n')
    if args.out is not None:
        save_csv(args.out / f'{name_of(args)}.csv', found)
        update_page(page_beside(args.out), 'What replays cost', command_line(), made)


def measure_all(args):
    '''Measure time and memory, print a table, and write it.'''
    # memory first, as the peak of a new process starts with the size of the one that it comes from
    memories = {name: {method: memory_apart(name, method) for method in args.methods} for name in args.models}
    rows, own = [], with_setting(args, args.size[0], args.batch[0])
    for name in args.models:
        measured = [method for method, memory in memories[name].items() if not isinstance(memory, str)]
        rows += rows_of(name, times(name, measured, own), memories[name], own)
    found = pd.DataFrame(rows, columns=COLUMNS)
    print(part(found))
    if args.out is not None:
        save_csv(args.out / f'{name_of(args)}.csv', found)
        update_page(page_beside(args.out), 'What maps cost', command_line(), {name_of(args): part(found)})
    reasons = [
        f'{method} refuses {name}: {memory}.' for name in args.models for method, memory in memories[name].items()
        if isinstance(memory, str)
    ]
    if reasons:
        print('', *reasons, sep='\n')


def main():
    '''Measure, print a table, and write it.'''
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--models', nargs='+', default=list(LAYERS), metavar='MODEL', help='the names of classifiers of torchvision',
        choices=torchvision.models.list_models(module=torchvision.models)
    )
    parser.add_argument(
        '--methods', nargs='+', choices=[*METHODS, *RECORDED],
        help=f'default: all, or with --recorded {", ".join(TITLES)}; {BASELINE} is always one'
    )
    parser.add_argument(
        '--recorded', action='store_true', help='compare calls of one model with their replays'
    )
    parser.add_argument('--out', type=Path, help='the folder of CSV files, beside which the page is')
    parser.add_argument(
        '--batch', type=int, nargs='+', help='the number of images (default: 2), with --recorded several (1 16 64)'
    )
    parser.add_argument(
        '--size', type=int, nargs='+', help='their height and width (default: 224), with --recorded several (8 32 224)'
    )
    parser.add_argument('--alpha', type=float, help='the shift of SplitGrad and SplitCAM (default: balanced)')
    parser.add_argument('--rounds', type=int, default=5, help='how often everything is timed (default: 5)')
    parser.add_argument(
        '--seconds', type=float, help=f'the time of a model, size and batch after which no round begins, but for'
        f' {LEAST_ROUNDS} (default: none)'
    )
    parser.add_argument('--device', type=torch.device, default=torch.device('cpu'))
    parser.add_argument('--dtype', default='float32', choices=('float32', 'float64', 'bfloat16', 'float16'))
    parser.add_argument('--threads', type=int, help='the number of threads on the CPU (default: as PyTorch chooses)')
    parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch = args.batch or ([*BATCHES] if args.recorded else [2])
    args.size = args.size or ([*SIZES] if args.recorded else [224])
    if min(*args.batch, *args.size, args.rounds) < 1 or (args.seconds or 1.) <= 0.:
        parser.error('--batch, --size, --rounds and --seconds are positive')
    if not args.recorded and len(args.batch) + len(args.size) > 2:
        parser.error('several batches or sizes are measured with --recorded')
    if args.recorded and len(args.models) > 1:
        parser.error('with --recorded, name one model: --models resnet18')
    args.methods = chosen_methods(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.measure:
        measure(*args.measure, with_setting(args, args.size[0], args.batch[0]))
    elif args.recorded:
        measure_recorded(args)
    else:
        measure_all(args)


if __name__ == '__main__':
    main()
