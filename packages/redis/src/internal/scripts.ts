import { createHash } from "node:crypto"
import { guard } from "./memoryLoss.ts"

/**
 * A Lua script and the name its command has in errors. All scripts take the same four keys of one lock, in one hash slot:
 *
 * - `L` hash: `s` the summary (permits in use, a lower bound of the next expiry, the last fencing token, the latest expiry,
 *   the limit, and the declared limit where another one was set), and each grant under `h:<holder id>`
 * - `Q` sorted set: waiting holder ids by place: the ticket, microseconds that only grow, less the head start
 * - `W` hash: what is known of each waiter, `b:<client>`: the stamp of the client's last sign of life, `t`: the last ticket,
 *   `d:`: whether some waiters may be those of dead clients
 * - `C` sorted set: clients with waiters, by the time until which they count as alive
 *
 * Only the server's clock is used, only integers are stored, and every key has an expiry.
 *
 * @internal
 */
export interface Script {
  readonly name: string
  readonly source: string
  readonly sha: string
  /** The same, for a server that may have forgotten leases: see `memoryLoss.ts`. */
  readonly guarded?: Script
  /** It may answer before the guard has looked. */
  readonly isEarly?: boolean
}

const compile = (name: string, source: string): Script => ({
  name,
  source,
  sha: createHash("sha1").update(source).digest("hex")
})

/** One shortcut grants, and the other, which does not, comes before it is known whether it may. */
const script = (name: string, body: string, shortcut = "", early = ""): Script => ({
  ...compile(name, opening + early + unguarded + shortcut + machinery + body),
  guarded: { ...compile(name, opening + early + guard(4) + shortcut + machinery + body), isEarly: early !== "" }
})

// For how long nothing is granted, up to which ttl nothing has to be recorded, and a number for the process that serves:
// what `guard` finds out.
const unguarded = "local withheld, recorded, process = 0, math.huge, 0\n"

// A grant is one string: expiry, token, permits, since, state and offer, client, metadata. State `h` is held, `w` too, and its
// client is told when somebody queues; `o` is an offer that nobody confirmed yet, `k` is kept for minHold, `t` is set aside
// for a ticket, and the number behind it is the process that did so. Expiry is rounded up, so that a lease never ends early.
const opening = `
local L, Q, W, C = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local RETENTION = 60000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local own = 'h:' .. (ARGV[1] or '')
local stored = redis.call('HMGET', L, 's', own)
local used, nextExpiry, fence, lastExpiry, limit, declared = 0, 0, 0, 0, 0, nil
if stored[1] then
  used, nextExpiry, fence, lastExpiry, limit, declared = string.match(stored[1], '^(%d+) (%d+) (%d+) (%d+) (%d+) ?(%d*)')
  used, nextExpiry, fence = tonumber(used), tonumber(nextExpiry), tonumber(fence)
  lastExpiry, limit, declared = tonumber(lastExpiry), tonumber(limit), tonumber(declared)
end
`

// Not even defined where a shortcut has answered before: closures are what these scripts spend most of their time on.
const machinery = `
-- Grants are written together with the summary, by save.
local writes, changed, extended, raised = {}, false, false, 0

local function int(number) return string.format('%d', number) end

local function parse(grant)
  local expiry, token, permits, since, mode, offer, client, meta =
    string.match(grant, '^(%d+) (%d+) (%d+) (%d+) (%a)(%d+) (%S+) (.*)$')
  return { expiry = tonumber(expiry), token = tonumber(token), permits = tonumber(permits), since = tonumber(since),
    mode = mode, offer = tonumber(offer), client = client, meta = meta }
end

local function put(id, grant)
  writes['h:' .. id] = string.format('%d %d %d %d %s%d %s %s', grant.expiry, grant.token, grant.permits,
    grant.since, grant.mode, grant.offer, grant.client, grant.meta)
  if used == 0 or grant.expiry < nextExpiry then nextExpiry = grant.expiry end
  if grant.expiry > lastExpiry then lastExpiry, extended = grant.expiry, true end
  -- Nobody works with what is only kept: to wait until it has run out would stop all keys for as long.
  if grant.mode ~= 'k' and grant.expiry - now > recorded then raised = math.max(raised, grant.expiry - now) end
  changed = true
end

local function ownGrant()
  return stored[2] and parse(stored[2]) or nil
end

-- Neither kept for minHold nor set aside for a ticket.
local function isHeld(grant)
  return grant.mode == 'h' or grant.mode == 'o' or grant.mode == 'w'
end

-- Its holder has asked: an offer is confirmed.
local function prolong(id, grant, ttl)
  grant.expiry = math.max(grant.expiry, now + ttl + 1)
  if grant.mode == 'o' then grant.mode = 'h' end
  put(id, grant)
end

-- Nobody is in the way of another limit.
local function declare(wanted)
  if (declared or limit) ~= wanted then limit, declared, changed, extended = wanted, nil, true, true end
end

-- Why a ticket can be adopted no more, for as long as somebody may ask.
local function spend(id, reason)
  -- While its slot is on the way to another node of a Cluster, a new key would break the script off half-way.
  redis.pcall('SET', L .. ':ticket:' .. id, reason, 'PX', 600000)
end

local function find(id)
  local grant = used > 0 and redis.call('HGET', L, 'h:' .. id)
  return grant and parse(grant) or nil
end

local function grants()
  local found = {}
  if used == 0 then return found end
  local all = redis.call('HGETALL', L)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'h:' then
      local grant = parse(all[i + 1])
      grant.id = string.sub(all[i], 3)
      found[#found + 1] = grant
    end
  end
  return found
end

local function remove(id, permits)
  redis.call('HDEL', L, 'h:' .. id)
  if 'h:' .. id == own then stored[2] = false end
  used = used - permits
  changed = true
end

local function dropExpired()
  if used == 0 or nextExpiry > now then return end
  local earliest
  for _, grant in ipairs(grants()) do
    if grant.expiry <= now then remove(grant.id, grant.permits)
    elseif not earliest or grant.expiry < earliest then earliest = grant.expiry end
  end
  nextExpiry = earliest or 0
  changed = true
end

local function grant(id, permits, ttl, mode, offer, client, meta, floor)
  fence = math.max(fence + 1, floor + 1, time[1] * 1000000 + time[2])
  put(id, { expiry = now + ttl + 1, token = fence, permits = permits, since = now, mode = mode, offer = offer,
    client = client, meta = meta })
  used = used + permits
  return fence
end

local forgotten = false
local function forget(id)
  redis.call('ZREM', Q, id)
  redis.call('HDEL', W, id)
  forgotten = true
end

-- Grants to the head of the queue for as long as it fits; nobody passes the head, unless it is dead. Tells whether anybody
-- is left waiting.
local function pump(inbox)
  while true do
    -- On its way to another node of a Cluster, a key that was emptied just now is not this node's any more.
    local head = (forgotten and redis.pcall or redis.call)('ZRANGE', Q, 0, 0)[1]
    if not head then
      -- Signs of life outlive the last waiter by nothing.
      if forgotten then redis.call('DEL', W, C) end
      return false
    end
    local waiter = redis.call('HGET', W, head)
    local permits, wanted, offer, client, floor, meta
    if waiter then
      permits, wanted, offer, client, floor, meta = string.match(waiter, '^(%d+) (%d+) (%d+) (%S+) (%d+) %d+ (.*)$')
    end
    -- The rest was lost.
    if limit == 0 and wanted then limit = tonumber(wanted) end
    permits = tonumber(permits)
    if not client or tonumber(redis.call('ZSCORE', C, client) or 0) <= now then
      forget(head)
    elseif permits > limit then
      -- The limit was lowered: who can never be granted is told so when it asks again.
      forget(head)
      redis.call('PUBLISH', inbox .. client, '? ' .. head)
    elseif withheld > 0 or used + permits > limit then
      return true
    else
      local token = grant(head, permits, tonumber(offer), 'o', tonumber(offer), client, meta, tonumber(floor))
      local stamp = redis.call('HGET', W, 'b:' .. client) or ''
      forget(head)
      redis.call('PUBLISH', inbox .. client, head .. ' ' .. int(token) .. ' ' .. offer .. ' ' .. stamp)
    end
  end
end

local function save()
  if not changed then return end
  if used == 0 then nextExpiry, lastExpiry = 0, now end
  local summary = string.format('%d %d %d %d %d', used, nextExpiry, fence, lastExpiry, limit)
  -- A limit that was set outlives the last use of its key by 30 days.
  local expiry = int(lastExpiry + (declared and 2592000000 or RETENTION))
  local fields = { 's', declared and summary .. ' ' .. int(declared) or summary }
  for field, value in pairs(writes) do
    fields[#fields + 1] = field
    fields[#fields + 1] = value
    if #fields > 1000 then
      redis.call('HSET', L, unpack(fields))
      fields = { fields[1], fields[2] }
    end
  end
  writes = {}
  -- Setting an expiry is allowed when memory is short, and makes the server allow the rest: a lease can be renewed then.
  if extended and stored[1] then redis.call('PEXPIREAT', L, expiry) end
  redis.call('HSET', L, unpack(fields))
  if not stored[1] then redis.call('PEXPIREAT', L, expiry) end
  if raised > 0 then
    record(raised)
    raised = 0
  end
end

-- A sign of life of a client that waits; the stamp is its own clock, given back with every grant pushed to it.
local function alive(client, liveness, stamp)
  redis.call('ZADD', C, int(now + liveness), client)
  redis.call('HSET', W, 'b:' .. client, stamp)
  redis.call('PEXPIRE', Q, RETENTION)
  redis.call('PEXPIRE', W, RETENTION)
  redis.call('PEXPIRE', C, RETENTION)
end

local function standing(id, all)
  local holders = {}
  for i, grant in ipairs(all or grants()) do
    if i > 16 then break end
    holders[i] = { grant.id, int(grant.token), grant.permits, now - grant.since, grant.expiry - now, grant.meta }
  end
  return { redis.call('ZRANK', Q, id) or -1, redis.call('ZCARD', Q), holders }
end
`

/**
 * `{1, token}` granted · `{2, ticket, standing, next, withheld?}` queued · `{0, standing}` refused · `{3, limit}` other limit
 * in use · `{4, standing}` queue full · `{5, withheld}` free as far as is known, but nothing is granted yet
 *
 * @internal
 */
export const attempt = script(
  "attempt",
  `
-- Those of dead clients are dropped one by one, at the head; where they would keep others out, all at once.
local function reap()
  if redis.call('ZCOUNT', C, '-inf', int(now)) == 0 and not redis.call('HGET', W, 'd:') then return end
  for _, other in ipairs(redis.call('ZRANGE', Q, 0, -1)) do
    local client = string.match(redis.call('HGET', W, other) or '', '^%d+ %d+ %d+ (%S+)')
    if not client or tonumber(redis.call('ZSCORE', C, client) or 0) <= now then
      redis.call('ZREM', Q, other)
      redis.call('HDEL', W, other)
    end
  end
  redis.call('HDEL', W, 'd:')
end
local id, wait, meta, offer, liveness = ARGV[1], ARGV[6] == '1', ARGV[8], ARGV[9], tonumber(ARGV[10])
local stamp, place, inbox, headStart, maxWaiters = ARGV[11], tonumber(ARGV[12]), ARGV[13], ARGV[14], tonumber(ARGV[15])
dropExpired()
local waiting = pump(inbox)
save()
local mine = find(id)
-- A duplicate that arrives after the release: what is kept is not its own any more.
if mine and not isHeld(mine) then return { 0, standing(id) } end
if mine then
  prolong(id, mine, ttl)
  save()
  return { 1, int(mine.token) }
end
if used == 0 and not waiting and (declared or limit) ~= wanted then
  -- What can never be granted declares nothing anew.
  if permits > wanted then return { 3, int(wanted) } end
  declare(wanted)
end
if (declared or limit) ~= wanted or permits > limit then
  forget(id)
  pump(inbox)
  save()
  return { 3, int(limit) }
end
local fits, queued = used + permits <= limit, waiting and redis.call('ZSCORE', Q, id)
-- Greater than all before it, also where those are from a server whose clock was ahead.
local function nextTicket()
  return math.max((tonumber(redis.call('HGET', W, 't')) or 0) + 1, time[1] * 1000000 + time[2])
end
-- Who would be the head of the queue has nobody to wait for.
if waiting and fits and not queued then
  local head = redis.call('ZRANGE', Q, 0, 0, 'WITHSCORES')
  waiting = tonumber(head[2]) <= (place or nextTicket() - headStart)
end
if withheld > 0 and fits and not wait then return { 5, int(withheld) } end
if withheld == 0 and fits and not waiting then
  local token = grant(id, permits, ttl, 'h', 0, client, meta, floor)
  save()
  return { 1, int(token) }
end
if not wait then return { 0, standing(id) } end
-- While nothing may be granted, the first one who waits declares the limit for those who follow.
if used == 0 then save() end
local all = grants()
if not queued then
  -- Who had a place already does not add to those who wait.
  if not place and maxWaiters >= 0 and redis.call('ZCARD', Q) >= maxWaiters then
    reap()
    if redis.call('ZCARD', Q) >= maxWaiters then return { 4, standing(id, all) } end
  end
  local ticket = nextTicket()
  redis.call('ZADD', Q, int(place or ticket - headStart), id)
  redis.call('HSET', W, 't', int(ticket))
  redis.call('HSET', W, id, table.concat({ int(permits), int(wanted), offer, client, int(floor), int(now), meta }, ' '))
  for _, grant in ipairs(all) do
    if grant.mode == 'w' then redis.call('PUBLISH', inbox .. grant.client, '+ ' .. grant.id) end
  end
end
alive(client, liveness, stamp)
local next = withheld > 0 and withheld or nextExpiry - now
return { 2, redis.call('ZSCORE', Q, id), standing(id, all), int(next), withheld > 0 and int(withheld) or nil }
`,
  // Free, with the limit that its callers declare, and nobody waits.
  `
local client, ttl, permits, wanted, floor = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])
if used == 0 and not declared and withheld == 0 and permits <= wanted and redis.call('EXISTS', Q) == 0 then
  local token, expiry = math.max(fence + 1, floor + 1, time[1] * 1000000 + time[2]), now + ttl + 1
  local text = string.format('%d', token)
  redis.call('HSET', L, 's', string.format('%d %d %s %d %d', permits, expiry, text, expiry, wanted),
    own, string.format('%d %s %d %d h0 %s %s', expiry, text, permits, now, client, ARGV[8]))
  redis.call('PEXPIREAT', L, string.format('%d', expiry + RETENTION))
  if expiry - now > recorded then record(expiry - now) end
  return { 1, text }
end
`
)

/**
 * `1` renewed · `0` not held
 *
 * @internal
 */
export const renew = script(
  "renew",
  `
local id, token, ttl, inbox = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
dropExpired()
local mine = ownGrant()
local held = mine and mine.token == token and isHeld(mine)
if held then prolong(id, mine, ttl) end
pump(inbox)
save()
return held and 1 or 0
`
)

/**
 * `1` released or kept · `0` not held
 *
 * @internal
 */
export const release = script(
  "release",
  `
local id, token, keepFor, inbox = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
dropExpired()
local mine = ownGrant()
local held = mine and mine.token == token and isHeld(mine)
if held and keepFor > 0 then
  mine.expiry, mine.mode = now + keepFor + 1, 'k'
  put(id, mine)
elseif held then
  remove(id, mine.permits)
end
pump(inbox)
save()
return held and 1 or 0
`,
  "",
  // The only holder goes, and nobody waits.
  `
if stored[2] and ARGV[3] == '0' and nextExpiry > now and not declared then
  local token, permits, mode = string.match(stored[2], '^%d+ (%d+) (%d+) %d+ (%a)')
  if token == ARGV[2] and tonumber(permits) == used and string.find('how', mode) and redis.call('EXISTS', Q) == 0 then
    redis.call('HDEL', L, own)
    redis.call('HSET', L, 's', string.format('0 0 %d %d %d', fence, now, limit))
    return 1
  end
end
`
)

/**
 * The standing just before.
 *
 * @internal
 */
export const abandon = script(
  "abandon",
  `
local id, inbox = ARGV[1], ARGV[2]
dropExpired()
local before = standing(id)
local mine = ownGrant()
if mine then remove(id, mine.permits) end
forget(id)
pump(inbox)
save()
return before
`
)

/**
 * `{1, token}`: every other grant is ended and its client told, ahead of everybody who waits.
 *
 * @internal
 */
export const takeover = script(
  "takeover",
  `
local id, client, ttl, permits, wanted = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local floor, meta, inbox = tonumber(ARGV[6]), ARGV[7], ARGV[8]
dropExpired()
local mine = ownGrant()
if mine and isHeld(mine) then
  prolong(id, mine, ttl)
  save()
  return { 1, int(mine.token) }
end
for _, other in ipairs(grants()) do
  remove(other.id, other.permits)
  if isHeld(other) then redis.call('PUBLISH', inbox .. other.client, '! ' .. other.id)
  elseif other.mode == 't' then spend(other.id, 'TakenOver') end
end
declare(wanted)
local token = grant(id, permits, ttl, 'h', 0, client, meta, floor)
pump(inbox)
save()
return { 1, int(token) }
`
)

/**
 * `{1, time left}` set aside under the ticket's id · `{0}` not held
 *
 * @internal
 */
export const transfer = script(
  "transfer",
  `
local id, token, ticketId, inbox = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
dropExpired()
local mine, aside = ownGrant(), find(ticketId)
if mine and mine.token == token and isHeld(mine) then
  remove(id, mine.permits)
  mine.mode, mine.offer, aside = 't', process, mine
  put(ticketId, aside)
  used = used + aside.permits
end
pump(inbox)
save()
if aside and aside.mode == 't' then return { 1, int(aside.expiry - now) } end
return { 0 }
`
)

/**
 * `{1, token}` adopted · `{0, reason}` refused · `{5, withheld}` set aside by a server that may have let it be adopted since
 *
 * @internal
 */
export const adopt = script(
  "adopt",
  `
local id, client, ttl, floor, meta = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local ticketId, ticketToken, inbox = ARGV[6], tonumber(ARGV[7]), ARGV[8]
dropExpired()
local mine, aside, token = ownGrant(), find(ticketId), nil
if mine and isHeld(mine) then
  prolong(id, mine, ttl)
  token = mine.token
elseif aside and aside.mode == 't' and aside.token == ticketToken then
  if withheld > 0 and aside.offer ~= process then
    save()
    return { 5, int(withheld) }
  end
  remove(ticketId, aside.permits)
  if mine then remove(id, mine.permits) end
  spend(ticketId, 'Adopted')
  token = grant(id, aside.permits, ttl, 'h', 0, client, meta, floor)
end
pump(inbox)
save()
if token then return { 1, int(token) } end
return { 0, redis.call('GET', L .. ':ticket:' .. ticketId) or 'Expired' }
`
)

/**
 * One for a client and key, however many wait: sign of life and poll. Tells of every offer this client has not confirmed,
 * and which of the ids it asks about are neither waiting nor granted. `{next, {{id, token, time left}, ...}, {id, ...}}`
 *
 * @internal
 */
export const heartbeat = script(
  "heartbeat",
  `
local client, liveness, stamp, inbox = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
dropExpired()
-- Without a queue nothing is written: what was lost would come back without an expiry.
if redis.call('EXISTS', Q) == 1 then
  alive(client, liveness, stamp)
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', C, '-inf', int(now))) do
    redis.call('ZREM', C, dead)
    redis.call('HDEL', W, 'b:' .. dead)
    redis.call('HSET', W, 'd:', 1)
  end
end
pump(inbox)
save()
local offers, unknown = {}, {}
for _, grant in ipairs(grants()) do
  if grant.mode == 'o' and grant.client == client then
    offers[#offers + 1] = { grant.id, int(grant.token), grant.expiry - now }
  end
end
for i = 5, #ARGV do
  if not redis.call('ZSCORE', Q, ARGV[i]) and not find(ARGV[i]) then unknown[#unknown + 1] = ARGV[i] end
end
return { int(withheld > 0 and withheld or nextExpiry - now), offers, unknown }
`
)

/**
 * `1` shrunk · `0` not held
 *
 * @internal
 */
export const shrink = script(
  "shrink",
  `
local id, token, permits, inbox = ARGV[1], tonumber(ARGV[2]), math.max(1, tonumber(ARGV[3])), ARGV[4]
dropExpired()
local mine = ownGrant()
local held = mine and mine.token == token and isHeld(mine)
if held and permits < mine.permits then
  used = used - mine.permits + permits
  mine.permits = permits
  put(id, mine)
end
pump(inbox)
save()
return held and 1 or 0
`
)

/**
 * `{1}` set · `{0, limit}` other limit in use
 *
 * @internal
 */
export const setLimit = script(
  "setLimit",
  `
local wanted, new, inbox = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
dropExpired()
local waiting = pump(inbox)
if used == 0 and not waiting then declare(wanted) end
if (declared or limit) ~= wanted then
  save()
  return { 0, int(limit) }
end
limit, declared, changed, extended = new, new ~= wanted and wanted or nil, true, true
pump(inbox)
save()
return { 1 }
`
)

/**
 * `{1, 1 or 0}` watched, and whether anybody waits · `{0}` not held
 *
 * @internal
 */
export const watch = script(
  "watch",
  `
local id, token, inbox = ARGV[1], tonumber(ARGV[2]), ARGV[3]
dropExpired()
local mine = ownGrant()
local held = mine and mine.token == token and isHeld(mine)
if held and mine.mode ~= 'w' then
  mine.mode = 'w'
  put(id, mine)
end
local waiting = pump(inbox)
save()
if held then return { 1, waiting and 1 or 0 } end
return { 0 }
`
)

/**
 * `{holders, {{id, permits, waited, metadata}, ...}, limit}`; changes nothing
 *
 * @internal
 */
export const inspect = compile(
  "inspect",
  `${opening}${unguarded}${machinery}
local holders, waiters = {}, {}
for _, grant in ipairs(grants()) do
  if grant.expiry > now then
    holders[#holders + 1] =
      { grant.id, int(grant.token), grant.permits, now - grant.since, grant.expiry - now, grant.meta }
  end
end
for _, id in ipairs(redis.call('ZRANGE', Q, 0, -1)) do
  local waiter = redis.call('HGET', W, id)
  if waiter then
    local permits, wanted, since, meta = string.match(waiter, '^(%d+) (%d+) %d+ %S+ %d+ (%d+) (.*)$')
    if limit == 0 then limit = tonumber(wanted) end
    waiters[#waiters + 1] = { id, tonumber(permits), now - tonumber(since), meta }
  end
end
return { holders, waiters, int(limit) }
`
)
