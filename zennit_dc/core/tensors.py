'''Functions of plain tensors.'''
import torch


same = torch.ops.aten.alias.default  # a view that keeps all strides: view_as changes the strides of axes of length one


def true_gradients(function, tensors, gradient):
    '''The gradients of a function by its tensors, of which some may be None, from another run of it.'''
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        copies = [tensor if tensor is None else same(tensor) if graph and tensor.requires_grad
                  else tensor.detach().requires_grad_() for tensor in tensors]
        output, known = function(*copies), [copy for copy in copies if copy is not None]
        if not output.requires_grad:
            return [None] * len(copies)
        found = iter(torch.autograd.grad(output, known, gradient, create_graph=graph, allow_unused=True))
    return [None if copy is None else next(found) for copy in copies]
