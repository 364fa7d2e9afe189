// The network: embed, sites, readout on one stream, and each gate a button on its `+`.

import { element, setText } from './elements.js';
import { formatSigned, formatNumber, formatShare } from './format.js';

const SMALLEST = 24; // of a gate, in pixels
const LARGEST = 44;
const MAIN = ['residual', 'branch']; // on the stream itself; others are inside of the site

const kindOf = (name) => name.slice(name.lastIndexOf('/') + 1);

export class Network {
  constructor(words, toggle) {
    this.words = words;
    this.buttons = [];
    this.sites = [];
    this.node = element('div', { class: 'network', role: 'group', 'aria-label': 'The network: every + is a switch' });
    this.node.append(element('div', { class: 'end' }, element('span', {}, 'embed')));
    const sites = words.sites.map((site) => this.site(site, toggle));
    const end = element('div', { class: 'end' }, element('span', {}, 'readout'));
    // The readout stays in the line of the last site.
    this.node.append(...sites.slice(0, -1), element('div', { class: 'tail' }, ...sites.slice(-1), end));
    this.node.addEventListener('keydown', (event) => this.move(event));
  }

  site({ label, gates }, toggle) {
    const main = gates.find((gate) => MAIN.includes(kindOf(this.words.gates[gate].name)));
    const inner = gates.filter((gate) => gate !== main);
    const parts = [];
    const joins = inner.filter((gate) => kindOf(this.words.gates[gate].name).startsWith('join'));
    inner.forEach((gate) => {
      if (joins.includes(gate)) {
        if (gate === joins[0]) parts.push(element('span', { class: 'chunk', 'aria-hidden': 'true' }));
        parts.push(this.button(gate, toggle), element('span', { class: 'chunk', 'aria-hidden': 'true' }));
      } else {
        const name = kindOf(this.words.gates[gate].name);
        parts.push(element('span', { class: 'inner', 'aria-hidden': 'true' }, name), this.button(gate, toggle));
      }
    });
    const branch = element(
      'div',
      { class: 'branch' },
      element('span', { class: 'label', title: label }, ...label.split('/').map((word) => element('span', {}, word))),
      parts.length ? element('span', { class: 'parts' }, ...parts) : null,
    );
    const kind = main === undefined ? 'site through' : 'site';
    const node = element('div', { class: kind, role: 'group', 'aria-label': label });
    node.append(element('span', { class: 'wire', 'aria-hidden': 'true' }), branch, element('div', { class: 'stream' }));
    if (main !== undefined) node.lastChild.append(this.button(main, toggle));
    this.sites.push({ node, main });
    return node;
  }

  button(gate, toggle) {
    const button = element('button', { type: 'button', class: 'gate', 'data-gate': gate, onclick: () => toggle(gate) });
    button.append(element('span', { 'aria-hidden': 'true' }, '+'));
    this.buttons[gate] = button;
    return button;
  }

  // Arrows go from gate to gate, as Tab does.
  move(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const order = [...this.node.querySelectorAll('button.gate')];
    const to = { Home: order[0], End: order.at(-1) }[event.key] ?? order[order.indexOf(event.target) + step];
    if (!to) return;
    event.preventDefault();
    to.focus();
  }

  // Sizes by a cost, colours by effects on a score; both are told in words too.
  paint(cost, judged) {
    this.cost = cost;
    const most = Math.max(...cost.gates.map(Math.abs), 1e-30);
    const effects = judged.effects ?? [];
    this.strongest = strongEffect(effects);
    this.buttons.forEach((button, gate) => {
      const size = SMALLEST + (LARGEST - SMALLEST) * Math.sqrt(Math.max(0, cost.gates[gate]) / most);
      const effect = effects[gate] ?? null;
      const share = effect === null || !this.strongest ? 0 : Math.min(1, Math.abs(effect) / this.strongest);
      button.style.setProperty('--size', `${size.toFixed(1)}px`);
      button.style.setProperty('--share', `${(100 * Math.sqrt(share)).toFixed(0)}%`);
      button.classList.toggle('helps', effect < 0);
      button.classList.toggle('harms', effect > 0);
      button.classList.toggle('strong', share > 0.25);
      button.title = this.told(gate, judged);
    });
  }

  told(gate, judged) {
    const { name } = this.words.gates[gate];
    const lines = [name];
    const effect = judged.effects?.[gate] ?? null;
    if (effect !== null) {
      const width = judged.effectHalfWidths?.[gate] ?? null;
      const margin = width === null ? '' : ` ± ${formatNumber(width, 2)}`;
      const meaning = judged.effectMeaning ? ` (${judged.effectMeaning})` : '';
      lines.push(`on: ${judged.scores[0].label} ${formatSigned(effect)}${margin}${meaning}`);
    }
    const share = this.cost.gates[gate] / this.cost.full;
    lines.push(`${this.cost.format(this.cost.gates[gate])} ${this.cost.name}, ${formatShare(share)} of all`);
    return lines.join('\n');
  }

  // `bits` as they were set, `named` in canonical form.
  show(bits, named, judged) {
    this.buttons.forEach((button, gate) => {
      const host = this.words.gates[gate].within;
      const idle = host !== null && !bits[host];
      button.setAttribute('aria-pressed', String(Boolean(named[gate])));
      button.classList.toggle('idle', idle);
      const about = idle ? `, no effect while ${this.words.gates[host].name} is off` : '';
      const words = this.told(gate, judged).split('\n');
      button.setAttribute('aria-label', `${words[0]}${about}; ${words.slice(1).join('; ')}`);
    });
    for (const { node, main } of this.sites) node.classList.toggle('off', main !== undefined && !named[main]);
  }
}

// The effect that has the full colour: of ten gates or more one in ten may go beyond, or a single one
// would leave all others grey.
const strongEffect = (effects) => {
  const sizes = effects.map((one) => Math.abs(one ?? 0)).sort((a, b) => a - b);
  return sizes[Math.ceil(0.9 * sizes.length) - 1] || (sizes.at(-1) ?? 0);
};

// What size, colour and shape of a gate mean.
export class Legend {
  constructor() {
    this.low = element('span');
    this.high = element('span');
    this.size = element('span');
    this.scale = element('span', { class: 'scale' }, this.low, element('span', { class: 'bar', 'aria-hidden': 'true' }), this.high);
    const sample = (kind, size) =>
      element('span', { class: `gate sample ${kind}`, 'aria-hidden': 'true', style: { '--size': `${size}px` } }, '+');
    this.node = element(
      'p',
      { class: 'legend' },
      element('span', {}, sample('on', 24), 'on'),
      element('span', {}, sample('off', 24), 'off'),
      element('span', {}, sample('on', 18), sample('on', 28), this.size),
      this.scale,
    );
  }

  paint(cost, judged, strongest) {
    setText(this.size, `size: its share of the ${cost.name}`);
    this.scale.hidden = !strongest;
    const beyond = (judged.effects ?? []).some((one) => Math.abs(one ?? 0) > strongest) ? ' or more' : '';
    setText(this.low, `helps: ${judged.scores[0].label} −${formatNumber(strongest, 2)}${beyond}`);
    setText(this.high, `+${formatNumber(strongest, 2)}${beyond}: harms`);
  }
}
