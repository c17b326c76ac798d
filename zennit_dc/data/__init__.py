'''Classifiers and images by their names, and long runs in parts and on several processes.'''
from ..lazy import lazily


__all__ = [
    'Classifier', 'IMAGENET_PREPROCESSING', 'ImageArray', 'ImageFolder', 'UnreadableImage', 'label_map', 'layers',
    'load_classifier', 'load_label_map', 'read_image',
]
__getattr__, __dir__ = lazily(globals(), {
    'classifiers': ('Classifier', 'IMAGENET_PREPROCESSING', 'layers', 'load_classifier'),
    'images': ('ImageArray', 'ImageFolder', 'UnreadableImage', 'label_map', 'load_label_map', 'read_image'),
})
