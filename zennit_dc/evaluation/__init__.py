'''Measuring explanations as the paper does.'''
