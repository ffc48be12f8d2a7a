/**
 * Preloaded into workers: workspace packages are their sources, as in the tests, so that nothing has to be built first.
 */
import { registerHooks } from "node:module"

registerHooks({
  resolve: (specifier, context, next) => {
    const [, name, module = "index"] = /^@effect-lock\/([^/]+)(?:\/(.+))?$/.exec(specifier) ?? []
    return name === undefined
      ? next(specifier, context)
      : next(new URL(`../../../${name}/src/${module}.ts`, import.meta.url).href, context)
  }
})
