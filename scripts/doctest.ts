// Makes every fence tagged `import.meta.vitest`, in a source or Markdown file, a module of its own under .doctest: there
// the compiler checks it as it would a user's file, and importing it is the test. `expression // => value` asserts.
import * as fs from "node:fs"
import * as path from "node:path"
import type { Plugin } from "vitest/config"

const root = path.dirname(import.meta.dirname)
const out = path.join(root, ".doctest")
const documents = ["README.md", "docs/**/*.md", "packages/*/README.md", "packages/*/src/**/*.ts"]

const fence = /^([ \t]*(?:\* ?)?)```ts import\.meta\.vitest\n([\s\S]*?)^[ \t]*(?:\* ?)?```/gm
const assertion = /^(?![ \t]*\/\/)(.+?);?[ \t]*\/\/ => (.+)$/gm

const testHead = `import { addEqualityTesters } from "@effect/vitest"
import { test } from "vitest"
addEqualityTesters()
`

// Keeps every line where it is in the document, so that compiler and test errors name the right one.
const moduleOf = (line: number, prefix: string, body: string) => {
  const text = body.split("\n").map((text) => text.slice(prefix.length)).join("\n")
  const head = "\n".repeat(line - 1) + `import { expect as $expect } from "vitest"\n`
  return head + text.replace(assertion, "$$expect($1).toStrictEqual($2)") + "export {}\n"
}

const modulesOf = (file: string): Array<[file: string, text: string]> => {
  const document = fs.readFileSync(path.join(root, file), "utf8")
  const fences = Array.from(document.matchAll(fence), ({ 1: prefix = "", 2: body = "", index }) => {
    const line = document.slice(0, index).split("\n").length
    return { line, text: moduleOf(line, prefix, body) }
  })
  if (fences.length === 0) return []
  const tests = fences.map(({ line }) => `test("${file}:${line}", () => import("./${line}.ts"))\n`)
  return [
    ...fences.map(({ line, text }): [string, string] => [path.join(file, `${line}.ts`), text]),
    [path.join(file, "doc.test.ts"), testHead + tests.join("")]
  ]
}

// Touches only what changed: another run may be reading the rest.
export const generateDoctests = () => {
  const modules = new Map(fs.globSync(documents, { cwd: root }).flatMap(modulesOf))
  for (const file of fs.globSync("**/{[0-9]*,doc.test}.ts", { cwd: out })) {
    if (!modules.has(file)) fs.rmSync(path.join(out, file))
  }
  for (const [file, text] of modules) {
    const target = path.join(out, file)
    if (fs.existsSync(target) && fs.readFileSync(target, "utf8") === text) continue
    fs.mkdirSync(path.dirname(target), { recursive: true })
    fs.writeFileSync(target, text)
  }
}

export const mapDoctestsToDocuments = (): Plugin => ({
  name: "doctest",
  enforce: "pre",
  transform(code, id) {
    const file = path.relative(out, path.dirname(id))
    if (file.startsWith("..") || !/^\d+\.ts$/.test(path.basename(id))) return null
    const source = path.join(root, file)
    const content = fs.readFileSync(source, "utf8")
    const mappings = "AAAA" + ";AACA".repeat(code.split("\n").length - 1)
    return { code, map: { version: 3, sources: [source], sourcesContent: [content], names: [], mappings } }
  }
})

if (import.meta.main) generateDoctests()
