'''What enters at the output for a class.'''
import torch
from torch.nn import functional as F


def require_scores(output):
    '''Return a model's output if it has the shape (batch, classes), else raise a ValueError.'''
    if not isinstance(output, torch.Tensor):
        raise ValueError(f'the model\'s output must be a tensor of shape (batch, classes), not {type(output).__name__}')
    if output.ndim != 2:
        raise ValueError(f'the model\'s output must have the shape (batch, classes), not {tuple(output.shape)}')
    return output


def class_relevance(target=None):
    '''What enters at the output to explain a class: one for this class and zero for all others.

    Parameters
    ----------
    target : int, :py:class:`torch.Tensor` or None, optional
        The class's index, or one for each sample, of shape (batch,). Default is the class with the largest output.

    Returns
    -------
    callable
        A function of the output of shape (batch, classes), as Zennit's attributors take it for ``attr_output``. It
        raises an :py:exc:`ValueError` for a class that the output does not have.
    '''
    def relevance(output):
        require_scores(output)
        classes = output.detach().argmax(1) if target is None else torch.as_tensor(target, device=output.device)
        if classes.min() < 0 or classes.max() >= output.shape[1]:
            raise ValueError(
                f'there is no class {int(classes.min() if classes.min() < 0 else classes.max())}, but those from 0 to'
                f' {output.shape[1] - 1}'
            )
        return F.one_hot(classes.expand(len(output)), output.shape[1]).to(output)
    return relevance
