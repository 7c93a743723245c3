/** Continue token ids: node continue.mjs BUNDLE IDS COUNT. Print the ids of the new tokens as JSON. */

import { Model, nodeFolder, onnxruntimeNode } from "../src/node.js";

const [bundle, ids, count] = process.argv.slice(2) as [string, string, string];
const model = await Model.open(nodeFolder(bundle), { backend: onnxruntimeNode() });
const tokens: number[] = [];
for await (const token of model.stream([ids.split(",").map(Number)], {
    maxNewTokens: Number(count),
    sampling: {},
    stopIds: [],
})) {
    tokens.push(token.id);
}
console.log(JSON.stringify({ tokens }));
await model.close();
