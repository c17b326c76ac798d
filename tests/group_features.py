'''A literal implementation of CAFO and CASO, entry by entry, in float64, and small piecewise linear networks.'''
import torch
from helpers import random_image
from torch import nn


SHAPE = (3, 2, 6, 6)


class Maxout(nn.Module):
    '''The largest of three affine functions for each of some units, and an affine function of these.'''
    def __init__(self, classes):
        super().__init__()
        self.units, self.dense = nn.Linear(72, 3 * 20), nn.Linear(20, classes)

    def forward(self, x):
        return self.dense(self.units(x.flatten(1)).unflatten(1, (20, 3)).amax(2))


def seeded(model, scale=1.):
    '''A model with weights from a seed, in float64 and evaluation mode.'''
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4.
        parameter.data = scale * torch.randn(parameter.shape, generator=generator) / fan ** .5
    for name, buffer in model.named_buffers():
        if name.endswith(('mean', 'var')):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + .5)
    return model.double().eval()


NETWORKS = {
    'MLP': lambda classes=7: seeded(nn.Sequential(
        nn.Flatten(), nn.Linear(72, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, classes)
    ), 2.),
    'CNN': lambda classes=7: seeded(nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, classes)
    ), 2.),
    'batch norm': lambda classes=7: seeded(nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.LeakyReLU(.1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, classes)
    ), 2.),
    'maxout': lambda classes=7: seeded(Maxout(classes), 2.),
}


def images(seed=1):
    '''Random images.'''
    return random_image(*SHAPE, seed=seed)


class Reference:
    '''The derivatives of the loss of one image, by the article's formulas, with the class gradients one by one.

    Parameters
    ----------
    model : module
        The model.
    image : tensor
        The image of shape (1, ...).
    target : int
        The class.
    classes : sequence of int, optional
        The classes to which the logits are restricted.
    '''
    def __init__(self, model, image, target, classes=None):
        leaf = image.detach().requires_grad_()
        logits = model(leaf.clone())[0]
        classes = list(range(len(logits))) if classes is None else classes
        rows = [torch.autograd.grad(logits[each], leaf, retain_graph=True)[0].flatten() for each in classes]
        self.rows, self.p = torch.stack(rows), logits[classes].detach().softmax(0)
        own = torch.tensor([float(each == target) for each in classes], dtype=torch.float64)
        self.s = 1. - (self.p * own).sum().item()
        self.g = ((self.p - own)[:, None] * self.rows).sum(0)
        mean = (self.p[:, None] * self.rows).sum(0)
        self.H = sum(p * torch.outer(row - mean, row - mean) for p, row in zip(self.p, self.rows))
        self.L = torch.linalg.eigvalsh(self.H)[-1].item()


def coordinate_ascent(g, H, lambda1, lambda2, sweeps=2000):
    '''The maximum of gᵀΔ + ΔᵀHΔ/2 − λ1 |Δ|₁ − λ2 |Δ|₂², one entry after the other.'''
    delta = torch.zeros_like(g)
    for _ in range(sweeps):
        before = delta.clone()
        for i in range(len(g)):
            slope = (g[i] + H[i] @ delta - H[i, i] * delta[i]).item()
            delta[i] = max(abs(slope) - lambda1, 0.) * (1 if slope > 0 else -1) / (2. * lambda2 - H[i, i].item())
        if (delta - before).norm() <= 1e-15 * delta.norm():
            break
    return delta


def violation(delta, g, H, lambda1, lambda2):
    '''How much the conditions of a maximum are violated, as the largest entry.'''
    rest = g + H @ delta - 2. * lambda2 * delta
    return torch.where(delta != 0., (rest - lambda1 * delta.sign()).abs(), (rest.abs() - lambda1).clamp(min=0.)).max()
