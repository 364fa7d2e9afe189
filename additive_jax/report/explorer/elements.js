// Elements of the page. Text goes in as text and never as markup.

export const element = (tag, properties = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'class') made.className = value;
    else if (name === 'style') for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
};

export const setText = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

let identifiers = 0;
export const newId = (word) => `${word}-${(identifiers += 1)}`;

// A label and the control that it is of.
export const field = (label, control, className = 'field') => {
  control.id ||= newId('control');
  return element('div', { class: className }, element('label', { for: control.id }, label), control);
};

export const choice = (labels, change) =>
  element(
    'select',
    { onchange: (event) => change(Number(event.target.value)) },
    ...labels.map((label, index) => element('option', { value: index }, label)),
  );

// Copies a text; from a file, where a browser may have no clipboard, by way of a selection.
export const copyText = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element('textarea', { 'aria-hidden': 'true', class: 'unseen' });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
};

export const copyButton = (label, what, text) => {
  const button = element('button', { type: 'button', class: 'copy', 'aria-label': what }, label);
  button.addEventListener('click', async () => {
    await copyText(text());
    setText(button, 'Copied');
    setTimeout(() => setText(button, label), 1500);
  });
  return button;
};
