'''Attributors of a sum of scores, each times its relevance.

The model is given a copy of the input, and is the same afterwards: nothing in it is switched over.
'''
from abc import abstractmethod
from contextlib import contextmanager

import torch
from zennit.attribution import Attributor

from ..attribution import require_scores


class ScoreAttributor(Attributor):
    '''Base class of the methods that explain a sum of scores.

    A call returns the model's output and the attribution in the input's shape. What is explained is the sum of the
    scores, each times its relevance: the score of a class, if that is all that
    :py:func:`~zennit_dc.attribution.class_relevance` lets in, or a difference of scores.

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model, in evaluation mode, from images of shape (batch, channels, height, width) to scores of shape (batch,
        classes).
    attr_output : :py:class:`torch.Tensor` or callable, optional
        The default relevance of the output, as for Zennit's attributors.

    Raises
    ------
    ValueError
        In a call, if the relevance has not the output's shape, or the method cannot be computed for the model.
    '''
    one_by_one = False
    '''Whether to explain one image at a time.'''

    @abstractmethod
    def attribute(self, model, input, targets):
        '''The attribution of images.

        Parameters
        ----------
        model : :py:class:`torch.nn.Module`
            The model, as the method shall call it.
        input : :py:class:`torch.Tensor`
            The input of shape (batch, channels, height, width), which may be changed.
        targets : :py:class:`torch.Tensor`
            The indices of the images' explained scores among the scores of the model, of shape (batch,).

        Returns
        -------
        :py:class:`torch.Tensor`
            The attribution in the input's shape.
        '''

    def predict(self, input):
        '''The model's output of shape (batch, classes), computed in order to look at how the model does it.'''
        return Isolated(self.model, input.dtype)(input)

    def isolated(self, output, relevance):
        '''The model as the method shall call it, for images with a given output and relevance.'''
        return Isolated(self.model, output.dtype, relevance)

    @contextmanager
    def prepared(self):
        '''A context in which images are explained.'''
        yield

    def forward(self, input, attr_output_fn):
        '''The output and the attribution, see :py:meth:`zennit.attribution.Attributor.forward`.'''
        with torch.no_grad():
            output = require_scores(self.predict(input))
        relevance = require_relevance(attr_output_fn(output), output)
        size = 1 if self.one_by_one else len(input)
        attributions = []
        for images, scores, weights in zip(input.split(size), output.split(size), relevance.split(size)):
            targets = torch.arange(len(images), device=images.device)
            with self.prepared():
                model = self.isolated(scores, weights)
                attributions.append(self.attribute(model, images.detach().clone(), targets).detach())
        return output, torch.cat(attributions).to(input.dtype)


class Isolated(torch.nn.Module):
    '''A model as a method may call it. It gets a copy of its input in a dtype, and may overwrite it. It returns, for
    each relevance, the explained score of each image of a batch: a tensor of shape (batch, images).

    Parameters
    ----------
    model : :py:class:`torch.nn.Module`
        The model.
    dtype : :py:class:`torch.dtype`
        The dtype of its input, as Captum's noise is in float32.
    relevance : :py:class:`torch.Tensor`, optional
        The relevance of the output for each image, of shape (images, classes). Default is to return the output.
    expected : :py:class:`torch.Tensor`, optional
        The output for the first images of each batch, of shape (images, classes).

    Raises
    ------
    ValueError
        When called, if the output is not the expected one.
    '''
    def __init__(self, model, dtype, relevance=None, expected=None):
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.relevance = relevance
        self.expected = expected

    def forward(self, input):
        '''Call the model.'''
        output = self.model(input.to(self.dtype, copy=True))
        if self.expected is not None:
            difference = (output[:len(self.expected)].detach() - self.expected).abs().max()
            if not difference <= 1e-2 * self.expected.abs().max():
                raise ValueError(
                    'the model computes something else when its activations get copies of their inputs: one of them'
                    ' overwrites in place what is read again later'
                )
        if self.relevance is None:
            return output
        used = self.relevance.any(0)  # a score of minus infinity times a relevance of zero is not a number
        return output[:, used] @ self.relevance[:, used].T


def require_relevance(relevance, output):
    '''The relevance of the output, detached, if it has the output's shape; else raise a ValueError.'''
    if relevance.shape != output.shape:
        raise ValueError(
            f'the relevance of the output must have the output\'s shape, {tuple(output.shape)}, not'
            f' {tuple(relevance.shape)}'
        )
    return relevance.detach().to(output)
