import { createHash } from "node:crypto"
import { guard } from "./memoryLoss.ts"
import type { Script } from "./scripts.ts"

/**
 * What one voter of a quorum does. All scripts take the key of one lock at that voter, and what votes anew also the mark of
 * the voter. The key is a hash:
 *
 * - `c` the counter, which only grows for as long as the key lives
 * - the vote, if there is one: `n` its nonce (`<client>-<round>`; `kept` for nobody, `aside` for who has the ticket), `k` the
 *   counter it was given, `t` the token of the lease when that is another number (else 0), `u` until when it lives, `s` since
 *   when, `i` holder id or ticket id, `m` metadata
 * - `y` until when the ticket lives whose vote has been adopted
 * - `x` what became of the last tickets, `<ticket id> <reason>` in lines
 * - `w:<client>` a client that waits, and `w` until when any of them does
 *
 * `n` and `k` together occur once. While a voter says `n k`, nobody else has had its vote since it gave that one.
 *
 * Only the server's clock is used, and every key has an expiry: the fence outlives the vote by `retention`, which is
 * longest ttl plus slack. A counter that is forgotten then is forgotten as in a server that lost its memory, and the same
 * proof holds: whatever token it had given is older than the clock by more than clocks may differ.
 */
const script = (name: string, body: string, ...parts: ReadonlyArray<string>): Script => {
  const source = [opening, ...parts, body].join("")
  return { name, source, sha: createHash("sha1").update(source).digest("hex") }
}

const opening = `
local K = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('HMGET', K, 'c', 'n', 'k', 't', 'u', 's', 'i', 'm')
local counter = tonumber(stored[1] or 0)
local nonce, vote, token, holder, meta = stored[2], stored[3], stored[4], stored[7], stored[8]
local expiry, since = tonumber(stored[5] or 0), tonumber(stored[6] or 0)
local live = nonce and expiry > now
local claim = token and token ~= '0' and token or vote

local function int(number) return string.format('%.0f', number) end

local function retain(moment, retention) redis.call('PEXPIREAT', K, int(moment + retention)) end

local function who()
  if not live then return {} end
  return { nonce, holder, claim, int(now - since), int(expiry - now), meta }
end

local owned = live and nonce ~= 'kept' and nonce ~= 'aside'

local function isOf(wantedNonce, wantedHolder, wantedToken)
  return live and (nonce == wantedNonce or
    (holder == wantedHolder and (wantedToken == '*' or (owned and wantedToken == claim))))
end
`

// Only of the last few, or a busy key would grow for ever: of others it is said that they ran out.
const tickets = `
local function reasonOf(ticket)
  for line in string.gmatch(redis.call('HGET', K, 'x') or '', '[^\\n]+') do
    local id, reason = string.match(line, '^(.*) (%a+)$')
    if id == ticket then return reason end
  end
  return ''
end

local function spend(ticket, reason)
  local lines, n = reason and ticket .. ' ' .. reason .. '\\n' or '', 1
  for line in string.gmatch(redis.call('HGET', K, 'x') or '', '[^\\n]+') do
    if n < 8 and string.match(line, '^(.*) %a+$') ~= ticket then lines, n = lines .. line .. '\\n', n + 1 end
  end
  redis.call('HSET', K, 'x', lines)
end
`

// A process that is not the one of the mark has restarted, or was promoted: it may have forgotten votes, so it gives none
// until all of them have run out. Without a mark only its uptime tells; seconds are cut off, on both sides.
const withholding = `
local function withheld(mark, quarantine)
  local info = redis.call('INFO', 'server')
  local process = string.match(info, 'run_id:(%w+)')
  local up = (tonumber(string.match(info, 'uptime_in_seconds:(%d+)')) - 1) * 1000
  local marked, from = string.match(mark or '', '^(%w+) (%d+)$')
  local rest = math.max(0, quarantine - up)
  if not marked then return process, 0, rest end
  if marked == process then return process, 1, math.max(0, tonumber(from) - now) end
  return process, 2, rest > 0 and rest or quarantine
end
`

// Two ways to tell for how long this voter gives no votes. A server that is a voter has a mark of its own, and `quarantine`
// is for how long. Where only keys vote, the guard of `memoryLoss.ts` knows of the server they are on: a mark beside the
// vote would be forgotten together with it.
const byVoter = `${withholding}
local recorded = math.huge

local function withheldFor()
  local quarantine = tonumber(ARGV[8])
  if quarantine == 0 then return 0 end
  local process, state, rest = withheld(redis.call('GET', KEYS[2]), quarantine)
  if state == 2 or (state == 0 and rest == 0) then
    redis.call('SET', KEYS[2], process .. ' ' .. int(now + rest), 'PX', int(4 * quarantine))
  end
  return rest
end
`

const byServer = `${guard(1)}
local function withheldFor() return withheld end
`

const votingScript = (name: string, body: string, ...parts: ReadonlyArray<string>): Script => ({
  ...script(name, body, byVoter, ...parts),
  guarded: script(name, body, byServer, ...parts)
})

/**
 * Asks for this voter's vote. Mode `take` takes it away from who has it and tells him; `adopt` exchanges the one that was set
 * aside under a ticket. `{1, counter}` granted · `{0, counter, holder}` held by somebody else · `{2, time}` withheld ·
 * `{3, counter, reason, holder}` nothing set aside
 *
 * @internal
 */
export const acquire = votingScript(
  "acquire",
  `
local client, round, id, ttl, floor = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local retention, wait, mode, ticket, inbox = tonumber(ARGV[7]), tonumber(ARGV[9]), ARGV[11], ARGV[12], ARGV[14]
local mine = client .. '-' .. ARGV[2]
-- Executed twice: one vote.
if live and nonce == mine then return { 1, vote } end
if mode == 'adopt' then
  if not (live and nonce == 'aside' and holder == ticket and claim == ARGV[13]) then
    return { 3, int(counter), reasonOf(ticket), who() }
  end
elseif live and mode ~= 'take' then
  -- An own earlier round is over and does not block this one; a later one is not to be overtaken.
  local owner, earlier = string.match(nonce, '^(%w+)%-(%d+)$')
  if not (owner == client and holder == id and tonumber(earlier) < round) then
    if wait > 0 then
      local latest, known = unpack(redis.call('HMGET', K, 'w', 'w:' .. client))
      local alive, same = string.match(known or '', '^(%d+) (.*)$')
      local waiter = ARGV[10] .. ' ' .. string.len(id) .. ' ' .. id .. ARGV[6]
      -- Every write is a change that the holder's tracking is told of.
      if same ~= waiter or tonumber(alive) < now + wait / 2 then
        redis.call('HSET', K, 'w', int(math.max(tonumber(latest or 0), now + wait)),
          'w:' .. client, int(now + wait) .. ' ' .. waiter)
      end
    end
    return { 0, int(counter), who() }
  end
end
local rest = withheldFor()
if rest > 0 then return { 2, int(rest) } end
if ttl > recorded then record(ttl) end
if mode == 'adopt' then
  redis.call('HSET', K, 'y', int(expiry))
  spend(ticket, 'Adopted')
end
if mode == 'take' and live and holder ~= id then
  local owner = string.match(nonce, '^(%w+)%-%d+$')
  if owner and inbox ~= '' then redis.call('PUBLISH', inbox .. owner, '! ' .. string.len(holder) .. ' ' .. holder .. K) end
  if nonce == 'aside' then spend(holder, 'TakenOver') end
end
-- Seconds, not microseconds: voters whose clocks agree within one give the same number, and one round trip decides.
counter = math.max(counter + 1, floor + 1, time[1] * 1048576)
local text, expires = int(counter), now + ttl + 1
redis.call('HSET', K, 'c', text, 'n', mine, 'k', text, 't', '0', 'u', int(expires), 's', int(now), 'i', id, 'm', ARGV[6])
if wait > 0 then redis.call('HDEL', K, 'w:' .. client) end
retain(expires, retention)
return { 1, text }
`,
  tickets
)

/**
 * Raises the counter to the token, if the vote is still the one that was given. `1` done · `0` the vote is gone
 *
 * @internal
 */
export const writeBack = script(
  "writeBack",
  `
if not (live and nonce == ARGV[1] and vote == ARGV[2]) then return 0 end
redis.call('HSET', K, 'c', int(math.max(counter, tonumber(ARGV[3]))), 't', ARGV[3])
return 1
`
)

/**
 * Takes a vote back, by its nonce or by holder id and token (`*`: any), and tells the client that waits longest. Where it was
 * adopted with a ticket, it is set aside again instead. `{1 or 0, holder just before}`
 *
 * @internal
 */
export const release = script(
  "release",
  `
local id, floor, keepFor, inbox, client = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7]
local retention = tonumber(ARGV[8])
local before = who()
if stored[1] and floor > counter then
  redis.call('HSET', K, 'c', int(floor))
  retain(math.max(expiry, now), retention)
end
if id ~= '' then
  local waiting = redis.call('HGET', K, 'w:' .. client)
  if waiting then
    local length, rest = string.match(waiting, '^%d+ %d+ (%d+) (.*)$')
    if string.sub(rest, 1, tonumber(length)) == id then redis.call('HDEL', K, 'w:' .. client) end
  end
end
if not isOf(ARGV[1], id, ARGV[3]) then return { 0, before } end
if ARGV[9] ~= '' then
  redis.call('HSET', K, 'n', 'aside', 'i', ARGV[9], 't', ARGV[10], 'u', redis.call('HGET', K, 'y') or int(now))
  spend(ARGV[9])
  return { 1, before }
end
if keepFor > 0 then
  redis.call('HSET', K, 'n', 'kept', 'u', int(now + keepFor + 1))
  retain(now + keepFor + 1, retention)
  return { 1, before }
end
redis.call('HDEL', K, 'n', 'k', 't', 'u', 's', 'i', 'm')
local latest = redis.call('HGET', K, 'w')
if latest and tonumber(latest) > now then
  local waiting, all = {}, redis.call('HGETALL', K)
  for i = 1, #all, 2 do
    local name = string.match(all[i], '^w:(.*)$')
    if name then
      local alive, from = string.match(all[i + 1], '^(%d+) (%d+) ')
      if tonumber(alive) > now then waiting[#waiting + 1] = { name, tonumber(from) }
      else redis.call('HDEL', K, all[i]) end
    end
  end
  if inbox == '' then return { 1, before } end
  -- By the clients' own clocks: a hint, which all voters read alike.
  table.sort(waiting, function(a, b) return a[2] < b[2] or (a[2] == b[2] and a[1] < b[1]) end)
  for _, one in ipairs(waiting) do
    if redis.call('PUBLISH', inbox .. one[1], nonce .. ' ' .. K) > 0 then break end
    redis.call('HDEL', K, 'w:' .. one[1])
  end
end
return { 1, before }
`,
  tickets
)

/**
 * Sets a vote aside under a ticket. `{1, time left}` done · `{0}` not held
 *
 * @internal
 */
export const transfer = script(
  "transfer",
  `
if isOf(ARGV[1], ARGV[2], ARGV[3]) then
  redis.call('HSET', K, 'n', 'aside', 'i', ARGV[4], 't', ARGV[3])
elseif not (live and nonce == 'aside' and holder == ARGV[4]) then
  return { 0 }
end
return { 1, int(expiry - now) }
`
)

/**
 * Lets a vote live on. `1` done · `0` there is none · `2` somebody else's
 *
 * @internal
 */
export const extend = script(
  "extend",
  `
if not isOf(ARGV[1], ARGV[2], ARGV[3]) then return live and 2 or 0 end
expiry = math.max(expiry, now + tonumber(ARGV[4]) + 1)
redis.call('HSET', K, 'u', int(expiry))
retain(expiry, tonumber(ARGV[5]))
return 1
`
)

/**
 * Votes again for a lease of which a majority has just been confirmed. `1` done · `0` somebody else's · `2` withheld
 *
 * @internal
 */
export const heal = votingScript(
  "heal",
  `
if live then return nonce == ARGV[1] and 1 or 0 end
-- A voter that may have forgotten whom it voted for gives no vote here either: that one may still count on it.
if withheldFor() > 0 then return 2 end
local expires = now + tonumber(ARGV[4]) + 1
redis.call('HSET', K, 'c', int(math.max(counter, tonumber(ARGV[3]))), 'n', ARGV[1], 'k', ARGV[3], 't', ARGV[3],
  'u', int(expires), 's', int(now - tonumber(ARGV[5])), 'i', ARGV[2], 'm', ARGV[6])
retain(expires, tonumber(ARGV[7]))
return 1
`
)

/**
 * `{holder, {{client, id, waited, metadata}, ...}}`; changes nothing
 *
 * @internal
 */
export const inspect = script(
  "inspect",
  `
local waiting = {}
local latest = redis.call('HGET', K, 'w')
if latest and tonumber(latest) > now then
  local all = redis.call('HGETALL', K)
  for i = 1, #all, 2 do
    local name = string.match(all[i], '^w:(.*)$')
    if name then
      local alive, from, length, rest = string.match(all[i + 1], '^(%d+) (%d+) (%d+) (.*)$')
      length = tonumber(length)
      if tonumber(alive) > now then
        waiting[#waiting + 1] =
          { name, string.sub(rest, 1, length), int(math.max(0, now - tonumber(from))), string.sub(rest, length + 1) }
      end
    end
  end
end
return { who(), waiting }
`
)

const checkSource = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local quarantine, mode = tonumber(ARGV[1]), ARGV[2]

local function int(number) return string.format('%.0f', number) end
${withholding}
local mark = redis.call('GET', KEYS[1])
local process, state, rest = withheld(mark, quarantine)
if mode ~= 'look' and quarantine > 0 then
  if state == 0 and mode == 'initialize' then rest = 0 end
  redis.call('SET', KEYS[1], process .. ' ' .. int(now + rest), 'PX', int(4 * quarantine))
end
return { process, int(now), state, int(rest) }
`

/**
 * Which process answers, and whether it may vote. The mark outlives every lease: it is renewed by whoever uses the quorum, so
 * where there is none nobody has a lease. `look` changes nothing; `initialize` declares a voter without a mark to be new;
 * `known` leaves a mark that says it is not. `{process, time, mark: 0 none, 1 its own, 2 of another, time withheld}`
 *
 * @internal
 */
export const check: Script = {
  name: "check",
  source: checkSource,
  sha: createHash("sha1").update(checkSource).digest("hex")
}

/**
 * What a server should know before it is needed: a script that is not known is sent again, and comes after what was sent
 * behind it.
 *
 * @internal
 */
export const all: ReadonlyArray<Script> = [acquire, writeBack, release, transfer, extend, heal, inspect, check]
