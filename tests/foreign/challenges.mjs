// Reads challenges with mppx, one a line of standard input, and prints what it makes of each.
import { createInterface } from "node:readline";
import { Challenge } from "mppx";

for await (const line of createInterface({ input: process.stdin })) {
  const challenge = Challenge.deserialize(line);
  const { amount, unitType } = challenge.request;
  console.log(JSON.stringify({ amount, unitType, again: Challenge.serialize(challenge) }));
}
