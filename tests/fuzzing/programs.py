'''Programs: steps on named values, which run on plain tensors and on split pairs alike, and what grows them.'''
import functools
import operator
import random
import re
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from zennit_dc.core.places import ACTIVATIONS, name_of


class Rejected(Exception):
    '''A step that makes no sense here: another one is tried.'''


def attend(x, *weights):
    '''Softmax attention, by hand.'''
    query, key, value = (x @ weight for weight in weights)
    return torch.softmax(query @ key.mT, -1) @ value


def attend_fused(x, *weights):
    '''The same by one function of torch.'''
    return F.scaled_dot_product_attention(*(x @ weight for weight in weights))


def assign(x, index, value):
    '''Assign to a part of a tensor.'''
    x[index] = value
    return x


def rectify(x, rows):
    '''ReLU, after one of rows that are a view of the tensor, or a copy.'''
    rows.relu_()
    return torch.relu(x)


NAMESPACE = {
    'torch': torch, 'F': F, 'operator': operator, 'attend': attend, 'attend_fused': attend_fused, 'assign': assign,
    'rectify': rectify,
}


@functools.cache
def compiled(code):
    '''The function of two inputs, and of a step's own tensors and module, that an expression stands for.'''
    return eval(f'lambda x, y=None, w=None, b=None, c=None, m=None: {code}', NAMESPACE)


class Step(nn.Module):
    '''One step of a program.

    Parameters
    ----------
    family : str
        The name of its family.
    code : str
        A Python expression of its inputs ``x`` and ``y``, its tensors ``w`` (a weight), ``b`` (a bias) and ``c`` (a
        constant), and its module ``m``.
    inputs : tuple of str
        The names of the values that it takes.
    output : str
        The name of the value that it gives.
    literal : callable or None
        What it is on two streams: a function ``(interpreter, step, *pairs) -> pair``.
    changes : bool
        Whether it changes its first input in place.
    own : dict
        Its tensors and its module, by their letters.
    '''
    def __init__(self, family, code, inputs, output, literal, changes, own):
        super().__init__()
        self.family, self.code, self.inputs, self.output = family, code, inputs, output
        self.literal, self.changes = literal, changes
        self.own = tuple(own)
        for name, value in own.items():
            setattr(self, name, nn.Parameter(value) if type(value) is torch.Tensor else value)

    def evaluate(self, *values, **replaced):
        '''The expression's value, with other tensors in place of the step's own.'''
        return compiled(self.code)(*values, **{**{name: getattr(self, name) for name in self.own}, **replaced})

    def forward(self, *values):
        return self.evaluate(*values)

    def copy(self, inputs):
        '''The same step of other inputs.'''
        own = {name: getattr(self, name) for name in self.own}
        return Step(self.family, self.code, inputs, self.output, self.literal, self.changes, own)

    def __str__(self):
        names = dict(zip('xy', self.inputs))
        code = re.sub(r'(?<![\w.\'])[xy](?!\w)', lambda found: names[found.group()], self.code)
        own = [
            f'{name}: {tuple(value.shape) if isinstance(value, torch.Tensor) else value}'
            for name, value in ((name, getattr(self, name)) for name in self.own)
        ]
        return f'{self.output} = {code}' + (f'    # {", ".join(own)}' if own else '')


class Program(nn.Module):
    '''A list of steps.

    Parameters
    ----------
    seed : int
        The seed from which everything is drawn.
    shapes : list of tuple
        The shapes of its inputs, a batch of ``batch`` samples each.
    '''
    device = 'cpu'

    def __init__(self, seed, shapes, steps=(), output='x0', bare=False):
        super().__init__()
        self.seed, self.shapes, self.bare = seed, shapes, bare
        self.steps = nn.ModuleList(steps)
        self.output = output

    @property
    def names(self):
        '''The names of the inputs.'''
        return [f'x{index}' for index in range(len(self.shapes))]

    @property
    def batch(self):
        '''The number of samples that it was made for.'''
        return self.shapes[0][0]

    def forward(self, *inputs):
        values = dict(zip(self.names, inputs))
        for step in self.steps:
            values[step.output] = step(*(values[name] for name in step.inputs))
        return values[self.output]

    def inputs(self, salt='', ties=False):
        '''Random inputs; with ties, few different values and many zeros among them.'''
        generator = torch.Generator().manual_seed(random.Random(f'{self.seed} {salt}').getrandbits(60))
        inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in self.shapes]
        inputs = [input.to(self.device) for input in inputs]
        return [(input * 1.5).round() / 2 for input in inputs] if ties else inputs

    def trace(self, inputs):
        '''Run it on plain tensors. Each step comes with the value of its result, with the result itself, with the
        input whose memory the result shares, or None, and with whether the result is this very input.'''
        values = dict(zip(self.names, [input.detach().requires_grad_().clone() for input in inputs]))
        traced = []
        for step in self.steps:  # with a graph, as attention has another layout without
            operands = [values[name] for name in step.inputs]
            result = values[step.output] = step(*operands)
            source = next((
                name for name, operand in zip(step.inputs, operands) if memory(operand) == memory(result)
            ), None)
            is_same = any(result is operand for operand in operands)
            traced.append((step, result.detach().clone(), result.detach(), source, is_same))
        return traced

    def listing(self):
        '''The program as text.'''
        shapes = {step.output: tuple(value.shape) for step, value, *_ in self.trace(self.inputs())}
        width = max([len(str(step)) for step in self.steps], default=0)
        return '\n'.join([
            f'seed {self.seed}: ' + ', '.join(f'{name} {shape}' for name, shape in zip(self.names, self.shapes)),
            *(f'  {index}: {step!s:{width}}  # -> {shapes[step.output]}' for index, step in enumerate(self.steps)),
            f'  return {self.output}'
        ])

    def with_steps(self, steps, output=None):
        '''A program of other steps.'''
        output = self.output if output is None else output
        return Program(self.seed, self.shapes, steps, output, self.bare).eval().on(self.device)

    def on(self, device):
        '''The program, moved to a device, as all of its inputs will be.'''
        self.device = device
        return self.to(device)

    def pruned(self):
        '''The same program without the steps on which its output does not depend.'''
        shared = {name: {name} for name in self.names}
        for step, _, _, source, _ in self.trace(self.inputs()):
            shared[step.output] = shared[source] if source is not None else set()
            shared[step.output].add(step.output)
        needed = set(shared[self.output])
        while True:
            steps = [step for step in self.steps if needed & shared[step.output]]
            more = needed.union(*(shared[name] for step in steps for name in step.inputs))
            if more == needed:
                return self.with_steps(steps)
            needed = more

    def layers(self, inputs):
        '''The names of the steps with a map of their own: with spatial axes, and a value of its own memory that no
        other step changes.'''
        found, count, traced = [], inputs[0].ndim, self.trace(inputs)
        changed = {memory(result) for _, _, result, source, _ in traced if source is not None}
        for index, (_, value, result, source, _) in enumerate(traced[:-1]):
            has_axes = value.ndim == count >= 3 and value.shape[0] == inputs[0].shape[0]
            if has_axes and source is None and memory(result) not in changed and self.depends_on(index, inputs):
                found.append(f'steps.{index}')
        return found

    def read_at(self, index, inputs):
        '''The index of the step at whose result the map of a step is read: an activation that alone uses the step's
        output, else the step itself. None where that activation is within a step of several functions.'''
        values, uses = dict(zip(self.names, [input.detach().requires_grad_() * 1 for input in inputs])), Uses()
        for number, step in enumerate(self.steps):
            with uses:
                uses.step = number
                values[step.output] = step(*[values[name] for name in step.inputs])
            if number == index:
                uses.watched = values[step.output]
        if len(uses.found) != 1 or uses.found[0][1] not in ACTIVATIONS or values[self.output] is uses.watched:
            return index
        (number, _, result), = uses.found
        return number if values[self.steps[number].output] is result else None

    def depends_on(self, index, inputs):
        '''Whether the output depends on that of a step, to whose memory other steps may write.'''
        kept = []

        def begin(module, args, output):
            kept.append(output.detach().requires_grad_())
            return kept[0] * 1

        handle = self.steps[index].register_forward_hook(begin)
        try:
            output = self(*[input.detach() for input in inputs])
            return output.requires_grad and torch.autograd.grad(output.sum(), kept, allow_unused=True)[0] is not None
        finally:
            handle.remove()


class Uses(TorchFunctionMode):
    '''What differentiable functions are called with a tensor: for each the number of the step, the function's name and
    its result.'''
    def __init__(self):
        super().__init__()
        self.watched, self.step, self.found = None, 0, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs))
        results = tree_leaves(result if function is not torch.Tensor.__setitem__ else args[0])
        if self.watched is not None and any(each is self.watched for each in leaves) and any(
            isinstance(each, torch.Tensor) and each.requires_grad for each in results
        ):
            self.found.append((self.step, name_of(function), result))
        return result


def memory(tensor):
    '''What is equal for tensors that share their memory.'''
    return tensor.untyped_storage().data_ptr()


@dataclass
class Value:
    '''What is known of a value while a program grows.

    Parameters
    ----------
    name : str
        Its name.
    shape : tuple
        Its shape.
    axis : int or None
        The axis along which its entries belong to different samples, if there is one.
    pattern : tuple
        To which sample the entries along this axis belong.
    '''
    name: str
    shape: tuple
    axis: int | None
    pattern: tuple

    @property
    def ndim(self):
        return len(self.shape)

    @property
    def leading(self):
        '''Whether samples are rows.'''
        return self.axis == 0

    def free_axes(self):
        '''The axes other than that of the samples.'''
        return [axis for axis in range(self.ndim) if axis != self.axis]


class Builder:
    '''Grows a program. What each entry of a value depends on is known by running the program on inputs of which one
    sample is not a number, for each sample.

    Parameters
    ----------
    seed : int
        The seed.
    families : dict
        The functions that add a step, by name, with their weights.
    '''
    LARGEST, MOST = 30., 2500

    def __init__(self, seed, families):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(60))
        self.families = families
        # a bare program has neither biases nor constants nor products, so that its relevance is conserved
        self.bare, self.may_mix = self.chance(.2), self.chance(.05)
        self.prefer = None
        batch, count = self.integer(2, 3), 2 if self.chance(.2) else 1
        shape = self.input_shape(batch)
        shapes = [shape if self.chance(.5) else self.input_shape(batch, min(len(shape), 4)) for _ in range(count - 1)]
        self.program = Program(seed, [shape, *shapes], bare=self.bare)
        self.restart()

    def input_shape(self, batch, ndim=None):
        '''A random shape. Axes are often as long as the batch, and sometimes of length one.'''
        ndim = self.random.choice([2, 3, 3, 4, 4, 4, 4, 5]) if ndim is None else ndim
        largest = {2: 6, 3: 8, 4: 8, 5: 5}[ndim]
        spatial = [batch if self.chance(.15) else self.integer(3, largest) for _ in range(ndim - 2)]
        if self.chance(.1) and spatial:
            spatial[0] = 1
        return batch, batch if self.chance(.2) else self.integer(1, 5), *spatial

    # random choices

    def chance(self, probability):
        return self.random.random() < probability

    def integer(self, low, high):
        return self.random.randint(low, high)

    def choice(self, options):
        '''One of some options, of which there may be none.'''
        options = list(options)
        if not options:
            raise Rejected
        return self.random.choice(options)

    def tensor(self, *shape, scale=1.):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale

    def weight(self, *shape, inputs):
        '''A weight that keeps values of the size of its inputs.'''
        return self.tensor(*shape, scale=1.4 * max(inputs, 1) ** -.5)

    def bias(self, *shape):
        return None if self.bare or self.chance(.3) else self.tensor(*shape, scale=.5)

    # values

    def restart(self):
        '''Run the program as it is, on random inputs and on those with a sample that is not a number.'''
        inputs = self.program.inputs()
        self.runs = []
        for sample in range(-1, self.program.batch):
            marked = [input.clone() for input in inputs]
            if sample >= 0:
                for input in marked:
                    input[sample] = torch.nan
            self.runs.append(dict(zip(self.program.names, [input.requires_grad_() for input in marked])))
        for step in self.program.steps:
            self.execute(step)

    def execute(self, step):
        for values in self.runs:
            values[step.output] = step(*(values[name] for name in step.inputs))

    def value(self, name):
        '''What is known of a value.'''
        marks = torch.stack([values[name].detach().isnan() for values in self.runs[1:]])
        shape = tuple(marks.shape[1:])
        if (marks.sum(0) > 1).any():
            return Value(name, shape, None, ())
        owners = (marks * torch.arange(1, len(marks) + 1).reshape(-1, *(1,) * len(shape))).sum(0) - 1
        for axis in range(len(shape)):
            rows = owners.movedim(axis, 0).flatten(1) if len(shape) > 1 else owners[:, None]
            pattern = rows.amax(1)
            if len(set(pattern.tolist()) - {-1}) > 1 and ((rows == pattern[:, None]) | (rows < 0)).all():
                return Value(name, shape, axis, tuple(pattern.tolist()))
        return Value(name, shape, None, ())

    def values(self):
        '''All values, the latest last.'''
        return [self.value(name) for name in self.runs[0]]

    def pick(self, condition=lambda value: True):
        '''One of the values that fulfil a condition, preferably a recent one.'''
        found = [value for value in self.values() if condition(value)]
        if not found:
            raise Rejected
        preferred = [value for value in found if value.name == self.prefer]
        if preferred and self.chance(.7):
            return preferred[0]
        return found[-1] if self.chance(.7) else self.random.choice(found)

    # steps

    def add(self, family, code, *inputs, literal=None, changes=False, **own):
        '''Add a step, and return the name of its result.'''
        program = self.program
        own = {name: value for name, value in own.items() if value is not None}
        if 'm' in own:
            own['m'] = own['m'].double().eval()
        names = tuple(each if isinstance(each, str) else each.name for each in inputs)
        step = Step(family, code, names, f'v{len(program.steps)}', literal, changes, own).eval()
        try:
            self.execute(step)
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, AttributeError) and 'steps' in str(error):
                raise
            raise Rejected from error
        program.steps.append(step)
        result = self.runs[0][step.output].detach()
        largest = result.abs().max() if 0 < result.numel() <= self.MOST else torch.inf
        if not 1e-3 < largest < self.LARGEST or (overlaps(self.runs[0][names[0]]) and changes):
            raise Rejected
        if self.value(step.output).axis is None and not self.may_mix:
            raise Rejected
        return step.output

    def grow(self, count):
        '''Add the steps of a number of families.'''
        names, weights = list(self.families), [weight for _, weight in self.families.values()]
        for _ in range(count):
            for _ in range(20):
                family = self.families[self.random.choices(names, weights)[0]][0]
                if self.attempt(family, self) is not None:
                    break

    def attempt(self, function, *args):
        '''Add steps by a function, and return the name of the last one's result; None if that is rejected.'''
        kept = list(self.program.steps)
        try:
            return function(*args)
        except Rejected:
            self.program = self.program.with_steps(kept)
            self.restart()
            return None

    def close(self):
        '''Let the output be made of one or two of the last values, with the samples in front.'''
        ends, wanted = [], self.integer(1, 2)
        for value in reversed(self.values()):
            if len(ends) < wanted and value.axis is not None:
                ends += [name for name in [self.attempt(self.closed, value)] if name is not None]
        if not ends:
            raise Rejected
        name = ends[0]
        if len(ends) == 2:
            name = self.add('cat', 'torch.cat([x, y], 1)', *ends, literal=route)
        value = self.value(name)
        if self.chance(.6):
            own = {'w': self.weight(3, value.shape[1], inputs=value.shape[1]), 'b': self.bias(3)}
            code = 'F.linear(x, w, b)' if own['b'] is not None else 'F.linear(x, w)'
            name = self.add('linear', code, value, literal=affine, **own)
        return self.program.with_steps(self.program.steps, name).pruned()

    def closed(self, value):
        '''A value with one row for each sample.'''
        batch, name = self.program.batch, value.name
        axis, pattern, size = value.axis, value.pattern, value.shape[value.axis]
        if size % batch:
            raise Rejected
        count = size // batch
        if pattern == tuple(range(batch)):
            position = axis
        elif pattern == tuple(range(batch)) * count:
            name = self.add('unflatten', f'x.unflatten({axis}, ({count}, -1))', name, literal=route)
            position = axis + 1
        elif pattern == tuple(sample for sample in range(batch) for _ in range(count)):
            name = self.add('unflatten', f'x.unflatten({axis}, (-1, {count}))', name, literal=route)
            position = axis
        else:
            raise Rejected
        if position:
            name = self.add('movedim', f'x.movedim({position}, 0)', name, literal=route)
        if self.value(name).ndim == 1:
            return self.add('unsqueeze', 'x.unsqueeze(1)', name, literal=route)
        return self.add('flatten', 'x.flatten(1)', name, literal=route) if self.value(name).ndim > 2 else name

    def build(self):
        '''Return the finished program.'''
        self.grow(self.integer(3, 12))
        return self.close()


def affine(interpreter, step, pair):
    '''The literal form of a layer with a weight and a bias.'''
    return interpreter.affine(pair, lambda a, w, b: step.evaluate(a, w=w, b=b), step.w, getattr(step, 'b', None))


ORDER_OF_MEMORY = (
    'x.contiguous()', 'x.contiguous(memory_format=torch.channels_last)', 'x.to(memory_format=torch.channels_last)',
)


JOINS = 'torch.cat(', 'torch.stack(', 'F.pad(', 'new_zeros(', 'index_fill('  # with others or with zeros


def route(interpreter, step, *pairs):
    '''The literal form of what only moves values, constants among them.'''
    if step.code in ORDER_OF_MEMORY:  # a layer's output stays that
        return replace(pairs[0])
    return interpreter.route(
        lambda *streams, **own: step.evaluate(*streams, **own), *pairs, c=getattr(step, 'c', None),
        moves=len(pairs) == 1 and not any(each in step.code for each in JOINS)
    )


def overlaps(tensor):
    '''Whether several entries have the same place in memory.'''
    places = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())
    index = places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return index.unique().numel() < index.numel()


def generate(seed, families):
    '''The program of a seed.'''
    for attempt in range(50):
        try:
            program = Builder(seed * 50 + attempt, families).build()
            program.seed = seed
            inputs = [input.requires_grad_() for input in program.inputs()]
            # by the parameters too: an in-place operation on what these need raises
            leaves = [*inputs, *program.parameters()]
            gradients = torch.autograd.grad(program(*inputs).sum(), leaves, allow_unused=True)[:len(inputs)]
            if all(gradient is not None and gradient.any() for gradient in gradients):
                return program
        except (Rejected, RuntimeError):
            continue
    raise RuntimeError(f'seed {seed} gives no program')
