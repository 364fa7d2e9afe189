// The explorers of a page: one, or one for each of several runs behind a row of tabs.

import { element, newId } from './elements.js';
import { Known } from './known.js';
import { Explorer } from './view.js';

class Runs {
  constructor(root) {
    this.panels = [...root.querySelectorAll('.explorer')];
    this.found = [];
    this.views = [];
    this.tabs = this.panels.map((panel, number) => this.tab(panel, number));
    const bar = { class: 'tabs', role: 'tablist', 'aria-label': 'Runs', onkeydown: (event) => this.move(event) };
    root.prepend(element('div', bar, ...this.tabs));
    this.choose(0);
  }

  tab(panel, number) {
    const { name, colour } = panel.dataset;
    panel.id = newId('run');
    const properties = { type: 'button', role: 'tab', id: newId('tab'), 'aria-controls': panel.id };
    const swatch = element('span', { class: 'swatch', 'aria-hidden': 'true', style: { '--colour': colour } });
    const tab = element('button', { ...properties, onclick: () => this.choose(number) }, swatch, name);
    panel.setAttribute('role', 'tabpanel');
    panel.setAttribute('aria-labelledby', tab.id);
    return tab;
  }

  // Arrows go from tab to tab; Tab goes on into what the tab shows.
  move(event) {
    const last = this.tabs.length - 1;
    const to = { ArrowRight: this.current + 1, ArrowLeft: this.current - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.choose((to + this.tabs.length) % this.tabs.length);
    this.tabs[this.current].focus();
  }

  // Takes a run's numbers out of the page when they are first needed.
  known(number) {
    this.found[number] ??= new Known(this.panels[number]);
    return this.found[number];
  }

  choose(number) {
    const [from, before] = [this.current, this.views[this.current]];
    this.current = number;
    this.tabs.forEach((tab, i) => {
      tab.setAttribute('aria-selected', String(i === number));
      tab.tabIndex = i === number ? 0 : -1;
      this.panels[i].hidden = i !== number;
    });
    this.views[number] ??= this.view(number);
    // Switches stay as they are from run to run of one network.
    if (before && this.isAlike(from, number)) this.views[number].set(before.bits.slice());
  }

  // Tells whether two runs have the same gates.
  isAlike(a, b) {
    return this.panels[a].dataset.network === this.panels[b].dataset.network;
  }

  view(number) {
    const others = this.panels.map((_, i) => i).filter((i) => i !== number && this.isAlike(i, number));
    return new Explorer(this.panels[number], this.known(number), others.map((i) => this.known(i)));
  }
}

for (const root of document.querySelectorAll('.explorer')) if (!root.closest('.explorers')) new Explorer(root, new Known(root));
for (const root of document.querySelectorAll('.explorers')) new Runs(root);
