'''A comparison of methods: settings are chosen on some images, and reported on others.'''
import os

import numpy as np
import pandas as pd

from ..data.classifiers import layers
from ..data.parts import atomic_write
from ..data.processes import local_device
from ..figures import save
from .data import split
from .figures import layer_figure, pareto_figure, spectra_figure
from .metrics import METRICS
from .mosaics import Mosaics
from .randomisation import randomised
from .runs import evaluate
from .selection import means, winners
from .settings import CRITERIA, SELECTION, ablation
from .tables import NOTE, latex, markdown, results_table


FEWEST = 6
'''The fewest images on which one setting can be better than another by more than chance: where it is better on all n of
them, the sign test has 2 · 0.5 ** n, which is below 0.05 from six on.'''
SENSITIVITY = 'max_sensitivity'
CHEAP = 'attribution_localisation', 'negative_localisation', 'object_auc', 'pointing_game'
'''The metrics that take no forward pass.'''
LOCALISING = 'grid_pointing_game', 'object_auc', 'attribution_localisation', 'pointing_game'


class MethodComparison:
    '''Methods on images: settings are chosen on one split of the images, and reported on the other.

    Parameters
    ----------
    classifier : :py:class:`~zennit_dc.data.classifiers.Classifier`
        The classifier.
    images : :py:class:`~zennit_dc.evaluation.data.MaskedImages`
        The images.
    out : path
        The folder of results.
    metrics : list[str]
        What is reported.
    costly : sequence of str
        The methods that are left out of Max Sensitivity and mosaics.
    subset : int or None
        The number of images for all metrics but those by which settings are chosen.
    mosaics : int
        The number of mosaics.
    share : float
        The share of the images on which settings are chosen.
    options : dict
        What :py:func:`zennit_dc.evaluation.runs.evaluate` takes.
    echo : callable
        What prints a text.
    '''
    def __init__(self, classifier, images, out, metrics, costly, subset, mosaics, share, options, echo):
        self.classifier, self.images, self.out, self.metrics = classifier, images, out, metrics
        self.costly, self.options, self.seed, self.echo = costly, options, options['seed'], echo
        self.validation, self.test = split(images, share, self.seed)
        self.few = self.sample(subset)
        self.mosaics = Mosaics(images, self.test, mosaics, self.seed) if mosaics else None
        self.is_first = int(os.environ.get('RANK', 0)) == 0  # of the processes, which make the same calls

    def require_all(self):
        '''Raise at once what would be raised late: for an image, or for layers that cannot be randomised.'''
        for index in range(len(self.images)):
            self.images.sample(index)
        self.classifier.to(local_device(self.options['device']), self.options['dtype'])
        if any(METRICS[each].needs_random for each in self.metrics):
            randomised(self.classifier, self.options['randomised_layers'], self.seed)

    def sample(self, count):
        '''A number of indices of the test split in their order, drawn by the seed, or all of them; a larger number has
        all of a smaller one's.'''
        if count is None or count >= len(self.test):
            return self.test
        return sorted(np.random.default_rng(self.seed).permutation(self.test)[:count].tolist())

    def scores(self, settings, *groups):
        '''The scores of settings on groups of images, each with its metrics.'''
        return pd.concat([evaluate(self.classifier, self.images, indices, [
            each for each in settings if names != [SENSITIVITY] or each.method not in self.costly
        ], names, self.out, **self.options) for indices, names in groups])

    def game(self, settings):
        '''The scores of settings on mosaics.'''
        return evaluate(
            self.classifier, self.mosaics, range(len(self.mosaics)),
            [each for each in settings if each.method not in self.costly], ['grid_pointing_game'],
            self.out / f'mosaics-{self.mosaics.fingerprint()[:8]}', **self.options
        )

    def report_spectra(self, settings, chosen_on):
        '''Report how smooth the maps of all settings are on the validation split, and how far from the gradient, and
        draw this against Pixel Flipping.'''
        metrics = [each for each in self.metrics if METRICS[each].table == 'spectra']
        if metrics:
            scores = self.scores(settings, (self.validation, metrics))
            self.report('validation-spectra', scores, echo=False)
            self.save(lambda: spectra_figure(pd.concat([chosen_on, scores]), settings), 'spectra.png')

    def choose(self, settings, scores, ablations):
        '''Choose the best settings, and report the choice.

        Returns
        -------
        tuple
            The winners, see :py:func:`zennit_dc.evaluation.selection.winners`; their settings; and the settings that
            are the best by localisation.
        '''
        chosen = winners(scores)
        by_name = {(setting.title, setting.name): setting for setting in settings}
        winning = [by_name[each] for each in zip(chosen['method'], chosen['setting'])]
        localising = winning[:len(winning) // 2]  # by the first of two criteria
        best = [setting for setting in settings if setting in winning]
        for name in ablations:
            if not ablation(best, name):
                raise ValueError(f'none of the best settings depends on {name}: leave out --ablation {name}')
        if self.is_first:
            remove_results(self.out)
            save_text(self.out / 'winners.csv', chosen.to_csv(index=False))
            which = 'the best ones' if len(self.validation) >= FEWEST else 'the first ones'
            counts = f'{len(self.validation)} images, {which} on {len(self.test)} others'
            self.echo(f'{len(settings)} settings on {counts}:\n')
            if len(self.validation) < FEWEST:
                self.echo(
                    f'{len(self.validation)} images cannot name a best setting: reported are the first by mean rank,'
                    f' which may be chance. {FEWEST} images are the fewest that can tell two settings apart (sign test,'
                    ' 5 %); take more images, or a larger --share.\n'
                )
        order = [name for name, *_ in layers(self.classifier, self.options['device'], self.options['dtype'])]
        self.save(lambda: layer_figure(scores, settings, localising, order), 'layers.png')
        return chosen, best, localising

    def report_test(self, best, chosen):
        '''Report the best settings on the test split, and on mosaics.'''
        others = [each for each in self.metrics if each not in (*SELECTION, SENSITIVITY)]
        by_which = [each for each in self.metrics if each in SELECTION]
        sensitivity = [each for each in self.metrics if each == SENSITIVITY]
        scores = self.scores(best, (self.test, by_which), (self.few, others), (self.few, sensitivity))
        self.report('test', scores, chosen)
        if self.mosaics:
            self.report('mosaics', self.game(best), chosen)

    def report_settings(self, settings):
        '''Report all settings on the test split, in one table with their scores on mosaics, and what is gained at what
        price.

        Returns
        -------
        list[:py:class:`~zennit_dc.evaluation.settings.Setting`]
            Of each method the setting with the best score in the first of :py:data:`LOCALISING` that was asked for, or
            its first one.
        '''
        found = [self.scores(settings, (self.test, [each for each in self.metrics if each in CHEAP]))]
        if self.mosaics:
            found.append(self.game(settings))
        slow = SENSITIVITY, 'support', 'selectivity'
        few = [each for each in self.metrics if each not in (*CHEAP, *slow)]
        groups = few, *([each] for each in slow if each in self.metrics)
        found += [self.scores(settings, (self.few, names)) for names in groups]
        scores = pd.concat(found)
        if self.is_first:
            remove_results(self.out)
            rows = results_table(scores)
            save_text(self.out / 'settings.csv', wide(scores).to_csv())
            save_text(self.out / 'settings.md', f'{markdown(rows)}\n{NOTE}')
            save_text(self.out / 'settings.tex', latex(rows))
            self.echo(f'{len(settings)} settings on {len(self.test)} images:\n\n{markdown(rows)}\n{NOTE}')
        self.save(lambda: pareto_figure(scores), 'pareto.png')
        table, best = means(scores), {}
        metric = next((each for each in LOCALISING if each in table), None)
        for setting in settings:
            score = -1. if metric is None else table.loc[(setting.title, setting.name), metric]
            if setting.method not in best or score > best[setting.method][0]:
                best[setting.method] = score, setting
        return [setting for _, setting in best.values()]

    def report_ablations(self, best, names, metrics):
        '''Report the best settings with all values of parameters.'''
        changed = ablation(best, *dict.fromkeys(names))
        localisation, faithfulness = (
            [each for each in metrics if each in CRITERIA[name]] for name in ('localisation', 'faithfulness')
        )
        groups = (
            (self.test, localisation), (self.few, faithfulness),
            (self.few, [each for each in metrics if each == SENSITIVITY])
        )
        if metrics:
            self.report('ablation', self.scores(changed, *groups))
        if self.mosaics:
            self.report('ablation-mosaics', self.game(changed))

    def report(self, name, scores, chosen=None, echo=True):
        '''Save scores and their tables, and print the tables.'''
        if not self.is_first:
            return
        save_text(self.out / f'{name}.csv', scores.to_csv(index=False))
        kinds = scores['metric'].map(lambda metric: METRICS[metric].table)
        for kind in dict.fromkeys(kinds):
            rows = results_table(scores[kinds == kind], chosen)
            title = kind if name == 'test' else name
            save_text(self.out / f'{title}.md', f'{markdown(rows)}\n{NOTE}')
            save_text(self.out / f'{title}.tex', latex(rows))
            if echo:
                self.echo(f'{title}:\n\n{markdown(rows)}\n{NOTE}')

    def save(self, make, name):
        '''Save a figure, if there is one to make.'''
        figure = make() if self.is_first else None
        if figure is not None:
            save(figure, self.out / name)


def remove_results(out):
    '''Remove the tables and figures of an earlier run with other settings.'''
    for name in (
        'validation', 'winners', 'test', 'table', 'randomisation', 'time', 'mosaics', 'ablation', 'ablation-mosaics',
        'layers', 'maps', 'spectra', 'validation-spectra', 'settings', 'pareto'
    ):
        for end in ('csv', 'md', 'tex', 'png'):
            (out / f'{name}.{end}').unlink(missing_ok=True)


def wide(scores):
    '''Scores as a table with a row for each setting and image, and a column for each metric: six digits, nan where a
    score is not a number, and nothing where there is none.'''
    scores, order = scores.assign(score=scores['score'].map('{:.6g}'.format)), list(dict.fromkeys(scores['metric']))
    keys = ['method', 'setting', 'image']
    return scores.pivot(index=keys, columns='metric', values='score').loc[
        list(dict.fromkeys(scores[keys].itertuples(index=False, name=None))), order
    ]


def save_text(file, content):
    '''Write a text as a whole or not at all.'''
    with atomic_write(file) as temporary:
        temporary.write_text(content, encoding='utf-8')
