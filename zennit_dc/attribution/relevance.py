'''What enters at the output for a class.'''
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from zennit.attribution import Attributor


Target = int | Tensor | None
Against = str | int | Sequence[int] | None
Relevance = Callable[[Tensor], Tensor]


def require_scores(output: Any) -> Tensor:
    '''Return a model's output if it has the shape (batch, classes), else raise a ValueError.'''
    if not isinstance(output, torch.Tensor):
        raise ValueError(f'the model\'s output must be a tensor of shape (batch, classes), not {type(output).__name__}')
    if output.ndim != 2:
        raise ValueError(f'the model\'s output must have the shape (batch, classes), not {tuple(output.shape)}')
    return output


def class_relevance(target: Target = None) -> Relevance:
    '''What enters at the output to explain a class: one for this class and zero for all others.

    An attributor of Zennit takes it in place of the class, which is no relevance:
    ``Gradient(model, SplitLRP())(image, class_relevance(967))``.

    Parameters
    ----------
    target : int, :py:class:`torch.Tensor` or None, optional
        The class's index, or one for each sample, of shape (batch,). Default is the class with the largest output.

    Returns
    -------
    callable
        A function of the output of shape (batch, classes), as Zennit's attributors take it for ``attr_output``. It
        raises an :py:exc:`ValueError` for a class that the output does not have, or if there is not one for each
        sample.

    Raises
    ------
    TypeError
        If the target is no index.
    '''
    own = None if target is None else indices(target)

    def relevance(output: Tensor) -> Tensor:
        require_scores(output)
        classes = output.detach().argmax(1) if own is None else own.to(output.device)
        if classes.shape not in ((), (len(output),)):
            raise ValueError(f'there are classes of shape {tuple(classes.shape)} for {len(output)} samples')
        wrong = classes[(classes < 0) | (classes >= output.shape[1])]
        if len(wrong):
            raise ValueError(f'there is no class {int(wrong[0])}, but those from 0 to {output.shape[1] - 1}')
        return F.one_hot(classes.expand(len(output)), output.shape[1]).to(output)
    return relevance


def indices(classes: Any) -> Tensor:
    '''Indices of classes as a tensor of integers, or a TypeError if they are none.'''
    try:
        found = torch.as_tensor(classes)
    except (TypeError, ValueError) as error:
        raise TypeError(f'a class is given by its index, not as {classes!r}') from error
    if not found.numel():
        return found.long()
    if found.is_floating_point() or found.is_complex() or found.dtype is torch.bool:
        raise TypeError(f'a class is given by its index, an integer, not as {classes!r}')
    return found.long()


def contrast(target: Target = None, against: Against = 'others') -> Relevance:
    '''The relevance at the output that explains why a class, rather than others.

    It is one for the class, and minus the weights of the others, which sum to one. Softmax does not see what is added
    to all logits alike, so that only differences of logits are about the class.

    Parameters
    ----------
    target : int, :py:class:`torch.Tensor` or None, optional
        The index of the class, or one for each sample, of shape (batch,). Default is the class with the largest output.
    against : {'others', 'likely'}, int or sequence of int, optional
        The other classes: all others alike, all others by their probabilities, or those with the given indices alike.

    Returns
    -------
    callable
        A function of the output of shape (batch, classes), as Zennit's attributors take it for ``attr_output``. It
        raises a :py:exc:`ValueError` if there is no such class, or if a class is to be explained against itself, and a
        :py:exc:`FloatingPointError` if the likely ones have no probabilities.

    Raises
    ------
    ValueError
        If there are no classes to explain it against.
    TypeError
        If a class is not given by its index.
    '''
    if isinstance(against, str) and against not in ('others', 'likely'):
        raise ValueError(f'against must be \'others\', \'likely\' or indices of classes, not {against!r}')
    own_of = class_relevance(target)
    rivals = [] if isinstance(against, str) else [class_relevance(each) for each in indices(against).flatten().tolist()]
    if not isinstance(against, str) and not rivals:
        raise ValueError('against must have the index of a class')

    def relevance(output: Tensor) -> Tensor:
        own = own_of(output)
        if isinstance(against, str):
            if output.shape[1] < 2:
                raise ValueError('there is no other class to explain the only one against')
            logits = output.detach() if against == 'likely' else torch.zeros_like(output)
            weights = logits.masked_fill(own > 0, -torch.inf).softmax(1)
            if not weights.isfinite().all():
                raise FloatingPointError(
                    'the other classes have no probabilities, as the output is not finite: explain the class against'
                    ' \'others\', or against some by their indices'
                )
            return own - weights
        others = torch.stack([rival(output) for rival in rivals]).mean(0)
        if (own * others).any():
            raise ValueError(f'a class cannot be explained against itself: {against}')
        return own - others
    return relevance


def relevance_of(target: Target = None, against: Against = None) -> Relevance:
    '''What enters at the output for a class: :py:func:`class_relevance` if ``against`` is None or ``'none'``, and else
    :py:func:`contrast`.'''
    return class_relevance(target) if against is None or against == 'none' else contrast(target, against)


def class_agreement(
    attributor: Attributor, input: Tensor, target: Target = None, other: Target = None,
    relevance: Callable[[Tensor], Relevance] = class_relevance
) -> Tensor:
    '''How much the maps of two classes agree: their cosine. A map that says the same of both is not about the class.

    Parameters
    ----------
    attributor : :py:class:`zennit.attribution.Attributor`
        The method.
    input : :py:class:`torch.Tensor`
        The input of shape (batch, channels, ...).
    target : int or :py:class:`torch.Tensor`, optional
        The class, or one for each sample. Default is the likeliest one.
    other : int or :py:class:`torch.Tensor`, optional
        The other class, or one for each sample. Default is the likeliest one but for ``target``.
    relevance : callable, optional
        The function of a class that returns what enters at the output, :py:func:`class_relevance` or
        :py:func:`contrast`.

    Returns
    -------
    :py:class:`torch.Tensor`
        The cosine of the two maps, which are summed over channels, of shape (batch,), in [-1, 1] and double precision;
        not a number where one of the maps is zero.

    Raises
    ------
    ValueError
        If there is no such class, or if both are the same.
    '''
    maps: list[Tensor] = []
    targets: list[Tensor] = []
    for chosen in (target, other):
        def entering(output: Tensor, chosen: Target = chosen) -> Tensor:
            own = class_relevance(chosen)(output)
            if targets and chosen is None:
                own = class_relevance()(output.detach().masked_fill(targets[0] > 0, -torch.inf)).to(output)
            targets.append(own)
            return relevance(own.argmax(1))(output)

        maps.append(attributor(input, entering)[1].sum(1))
    if (targets[0] * targets[1]).any():
        raise ValueError('the agreement is of the maps of two different classes')
    return map_cosine(*maps)


def runner_up(output: Tensor, target: int, against: Against = None) -> int | None:
    '''The likeliest class apart from a class and from those that it is explained against, or None if there is none.

    Parameters
    ----------
    output : :py:class:`torch.Tensor`
        The scores of one image, of shape (classes,).
    target : int
        The class.
    against : {'none', 'others', 'likely'}, int or sequence of int, optional
        The classes to explain it against.
    '''
    named = [] if against is None or isinstance(against, str) else torch.as_tensor(against).flatten().tolist()
    left = [index for index in output.argsort(descending=True).tolist() if index not in (target, *named)]
    return left[0] if left else None


def map_cosine(first: Tensor, second: Tensor) -> Tensor:
    '''The cosine of two maps of each image, of shape (batch,), in double precision; not a number where one is zero.'''
    first, second = first.detach().double().flatten(1), second.detach().double().flatten(1)
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))
