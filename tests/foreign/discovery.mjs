// Reads a service's discovery with other people's checkers. Each prints one line of JSON: its name,
// and what it found as a list of texts, `severity: what`.
import { Validator } from "@seriousme/openapi-schema-validator";
import {
  checkL2ForOpenAPI,
  discoverOriginSchema,
  getOpenAPI,
  getWarningsForL2,
  getWarningsForOpenAPI,
} from "@agentcash/discovery";
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const MPPX = fileURLToPath(new URL("node_modules/.bin/mppx", import.meta.url));
const base = process.argv[2];

const CHECKERS = {
  async openapi() {
    const document = await (await fetch(`${base}/openapi.json`)).json();
    const { valid, errors } = await new Validator().validate(document);
    return valid ? ["pass: valid"] : [`fail: ${JSON.stringify(errors)}`];
  },
  async mppx() {
    const said = await promisify(execFile)(MPPX, ["validate", base, "--outputJson"]).catch((e) => e);
    const { discovery, endpoints } = JSON.parse(said.stdout);
    const results = endpoints.flatMap((one) => [
      ...one.challenge,
      ...one.errorHandling,
      ...one.payment,
    ]);
    return [...discovery.checks, ...results].map(
      ({ severity, label, detail }) => `${severity}: ${label}${detail ? ` (${detail})` : ""}`,
    );
  },
  async agentcash() {
    const { endpoints = [] } = await discoverOriginSchema({ target: base });
    const document = (await getOpenAPI(base)).unwrapOr(null);
    const warnings = [
      ...getWarningsForOpenAPI(document),
      ...getWarningsForL2(checkL2ForOpenAPI(document)),
    ];
    return [
      ...endpoints.map(({ method, path, authMode, price, protocols }) =>
        ["pass:", method, path, authMode, price, ...(protocols ?? [])].filter(Boolean).join(" "),
      ),
      ...warnings.map(({ severity, code, message }) => `${severity}: ${code} ${message}`),
    ];
  },
};

for (const [name, check] of Object.entries(CHECKERS)) {
  console.log(JSON.stringify({ name, found: await check() }));
}
