'''Classifiers and images by their names, and long runs in parts and on several processes.'''
from .classifiers import IMAGENET_PREPROCESSING, Classifier, layers, load_classifier
from .images import ImageArray, ImageFolder, UnreadableImage, label_map, load_label_map, read_image


__all__ = [
    'Classifier', 'IMAGENET_PREPROCESSING', 'ImageArray', 'ImageFolder', 'UnreadableImage', 'label_map', 'layers',
    'load_classifier', 'load_label_map', 'read_image',
]
