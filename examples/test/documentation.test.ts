import { LockError, LockMetrics, LockOptions } from "@effect-lock/core"
import { assert, describe, it } from "@effect/vitest"
import * as Fs from "node:fs"
import * as Path from "node:path"

const root = Path.resolve(import.meta.dirname, "../..")

const documents = Fs.globSync(["*.md", "docs/**/*.md", "packages/*/README.md"], { cwd: root })

const read = (file: string) => Fs.readFileSync(Path.resolve(root, file), "utf8")

/** A document without its code, where brackets mean something else. */
const prose = (file: string) => read(file).replaceAll(/^```.*?^```/gms, "")

interface Link {
  readonly text: string
  readonly target: string
  readonly anchor: string | undefined
}

const linksOf = (file: string): ReadonlyArray<Link> =>
  Array.from(prose(file).matchAll(/\[([^[\]]+)\]\(([^()\s]+)\)/g), ([, text = "", href = ""]) => {
    const [path = "", anchor] = href.split("#")
    return { text: text.replaceAll("\\", ""), target: Path.resolve(root, Path.dirname(file), path), anchor, href }
  }).filter(({ href }) => !/^\w+:/.test(href)).map((link) =>
    link.target === Path.resolve(root, Path.dirname(file)) ? { ...link, target: Path.resolve(root, file) } : link
  )

/** What a heading's anchor is called where these documents are shown. */
const anchorsOf = (file: string) =>
  Array.from(
    prose(file).matchAll(/^#+ (.*)$/gm),
    ([, heading = ""]) => heading.toLowerCase().replaceAll(/[^\p{L}\p{N}\- ]/gu, "").replaceAll(" ", "-")
  )

const isTestTitle = ({ target, text }: Link) => /(\.test|Checks)\.ts$/.test(target) && !target.endsWith(text)

describe("documentation", () => {
  it("is found", () => {
    assert.includeMembers(documents, ["README.md", "CONTRIBUTING.md", "docs/guarantees.md"])
  })

  for (const file of documents) {
    it(`links to what exists: ${file}`, () => {
      for (const link of linksOf(file)) {
        assert.isTrue(Fs.existsSync(link.target), `${link.text}: no ${link.target}`)
        if (link.anchor !== undefined) assert.include(anchorsOf(link.target), link.anchor, link.text)
        if (isTestTitle(link)) {
          assert.isTrue(read(link.target).includes(link.text), `no test "${link.text}" in ${link.target}`)
        }
      }
    })
  }

  const guarantees = prose("docs/guarantees.md").split(/^### (?=G\d)/m).slice(1)

  it("has all guarantees, each with a test that proves it", () => {
    assert.deepStrictEqual(
      guarantees.map((section) => /^G\d+/.exec(section)?.[0]),
      Array.from({ length: 12 }, (_, index) => `G${index + 1}`)
    )
    for (const section of guarantees) assert.match(section, /(\.test|Checks)\.ts\)/, section)
  })

  const rows = prose("docs/coming-from.md").split(/^### (?=rueidislock|redsync|What hurts|How)/m).slice(1, 4)
    .map((section) => section.split("\n## ")[0]!.split("\n").filter((line) => line.startsWith("|")).slice(2))

  it("has an answer to everything the predecessors have, and to all that hurts, each with a test that proves it", () => {
    assert.deepStrictEqual(rows.map(({ length }) => length), [10, 9, 9])
    for (const row of rows.flat()) assert.match(row, /(\.test|Checks)\.ts\)[^|]*\|$/, row)
  })

  it("names every option, error, reason and metric", () => {
    const text = prose("README.md")
    const errors = Object.keys(LockError).filter((name) => /^(Lock|Ticket)/.test(name))
    const metrics = Object.values(LockMetrics).map(({ id }) => id)
    const names = [...Object.keys(LockOptions.defaults), ...errors, ...LockError.LossReason.literals, ...metrics]
    assert.isAbove(names.length, 25)
    for (const name of names) assert.isTrue(text.includes(`\`${name}\``), `${name} is not mentioned`)
    assert.deepStrictEqual(
      Array.from(text.matchAll(/`(effect_lock_\w+)`/g), ([, metric]) => metric).filter((metric) =>
        !metrics.includes(metric!)
      ),
      []
    )
  })
})
