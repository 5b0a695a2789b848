// The numbers are counted again by their button alone: an arrow key in a closed list chooses before its reader has.

import { keys } from "./shell.js";

keys([]);
