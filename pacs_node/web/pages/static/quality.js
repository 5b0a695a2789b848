// Counts again when another period or sender is chosen.

import { $, $$, keys } from "./shell.js";

for (const select of $$("#choose select")) select.addEventListener("change", () => $("#choose").requestSubmit());
keys([]);
