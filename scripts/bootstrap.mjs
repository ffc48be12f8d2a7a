// `npm test` and `npm run demo` from a bare clone. Runs before anything is installed: plain JavaScript, Node 20, no
// dependencies. A phase is a function below or the script of that name in package.json.
import { spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"

process.chdir(fileURLToPath(new URL("..", import.meta.url)))

const bin = path.resolve("node_modules/.bin")
const withTools = { ...process.env, PATH: `${bin}${path.delimiter}${process.env.PATH}` }

const fail = (message) => {
  if (message) console.error(message)
  process.exit(1)
}

const run = (command, env = withTools) => {
  const { signal, status } = spawnSync(command, { shell: true, stdio: "inherit", env })
  if (signal !== null || status !== 0) fail()
}

const isOnPath = (command) => spawnSync(`command -v ${command}`, { shell: true }).status === 0

const manifestHash = () => {
  const folders = [".", ...fs.readdirSync("packages").map((name) => `packages/${name}`), "examples", "benchmarks"]
  const files = ["package-lock.json", ".npmrc", ...folders.map((folder) => `${folder}/package.json`)]
  const hash = createHash("sha256")
  for (const file of files) if (fs.existsSync(file)) hash.update(file).update(fs.readFileSync(file))
  return hash.digest("hex")
}

const install = () => {
  const stamp = "node_modules/.effect-lock-install"
  const isCurrent = fs.existsSync(stamp) && fs.readFileSync(stamp, "utf8") === manifestHash()
  if (isCurrent) return console.log("up to date")
  // The warnings hidden are about npm's own Node; the tools run on the one in node_modules.
  run("npm install --include=dev --loglevel=error", process.env)
  if (spawnSync(path.join(bin, "node"), ["--version"]).status !== 0) {
    fail("node_modules/.bin/node does not run: allow npm to run install scripts, then `npm rebuild node`.")
  }
  fs.writeFileSync(stamp, manifestHash())
}

const redis = () => {
  const found = process.env.REDIS_SERVER_BIN || ["redis-server", "valkey-server"].find(isOnPath)
  if (found) return console.log(`using ${found}`)
  const sudo = process.getuid?.() === 0 ? "" : "sudo "
  if (!isOnPath("apt-get") || (sudo && !isOnPath("sudo"))) {
    fail("Install redis-server or valkey-server with your package manager, or set REDIS_SERVER_BIN to its path.")
  }
  run(`${sudo}apt-get update -qq`)
  run(`${sudo}env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server`)
}

const tasks = {
  demo: [["Install", install], ["Build", "build"], ["Demo", "quickstart"]],
  test: [
    ["Install", install],
    ["Redis", redis],
    ["Build and types", "check"],
    ["Effect diagnostics", "diagnostics"],
    ["Lint and format", "lint"],
    ["Published packages", "pack:check"],
    ["Unused code and dependencies", "knip"],
    ["Tests and documentation examples", "test:unit"]
  ]
}

const { scripts } = JSON.parse(fs.readFileSync("package.json", "utf8"))
for (const [title, phase] of tasks[process.argv[2]]) {
  console.log(`\n=== ${title} ===`)
  if (typeof phase === "function") phase()
  else run(scripts[phase])
}
