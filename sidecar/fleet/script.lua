-- One atomic call of one host: hand out send times, keep the ledger of promises, count the day.
--
-- Rules (sidecar/fleet/README.md#rules)
--   * All numbers are integers: times in microseconds of this engine's clock, rates in millionths of a request a second.
--     They stay below 2^53, and are written with "%.0f": Lua's tostring would round them.
--   * A call that is too late has no effect. Its host has given up waiting for it.
--   * The pointer is the time of the next free slot. Slots are one step apart, whichever host gets them, so that no second
--     holds more of them than the rate.
--   * A promise is what a host may send each second when it cannot reach the engine. The sum of all promises never
--     exceeds "alone". The ledger holds the most that a host may believe it has: a promise grows here before its host
--     knows, and shrinks only after its host has said so.
--   * What absent hosts may send of the day is set aside, too: from what is left when the lease ends, the part that the
--     promise is of "alone". A lone host counts in the same way, so it stops before it has used more.
--   * A new epoch begins when the state is missing, or when another process of the engine answers. What the hosts still
--     believe is then unknown; each brings it ("claims") in its first call of the epoch.
--
-- Keys: state, members (score: end of the lease), absent (score: when the lease ended), ledger, identities, names,
--       waiting high / normal / low (score: end of the entry), pace (score: thousandths), minutes, granted
-- Answer: first the outcome (ok, late, join, clone, older, differ), then what belongs to it. See sidecar/fleet/wire.py.

local STATE, MEMBERS, ABSENT, LEDGER, IDS, NAMES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local WAITING = { KEYS[7], KEYS[8], KEYS[9] }
local PACE, MINUTES, GRANTED = KEYS[10], KEYS[11], KEYS[12]

local LEAD = 2000             -- a slot needs this much time to reach its host
local WAITS = { 500000, 2000000, 2000000 } -- how long a waiting host counts, by class; high must not block others for long
local BLANK = 10000000        -- how long a new epoch sets everything aside: what the hosts know comes with their first calls
local MIDNIGHT = 50000        -- no slots so shortly before midnight (UTC days): a late one would belong to the next day
local KEEP_MS = 172800000     -- keys of an unused fleet expire after two days
local DAY = 1440

local names = { 'op', 'member', 'start', 'nonce', 'host', 'run', 'from', 'till', 'per_second', 'per_day', 'normal_day',
  'day', 'spread', 'identity', 'horizon', 'lease', 'cap', 'guard', 'forget', 'alone', 'epoch', 'promise', 'known',
  'high', 'normal', 'low', 'held', 'returned', 'lone_id', 'lone', 'pace', 'history', 'own' }
local arg = {}
for at, name in ipairs(names) do arg[name] = ARGV[at] end
local function number(name) return tonumber(arg[name]) end
local function text(value) return string.format('%.0f', value) end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local minute = math.floor(now / 60000000)

local fields = { 'epoch', 'run', 'pointer', 'clock', 'total', 'absent', 'unclaimed_of', 'claimed', 'until', 'minute',
  'oldest', 'used', 'next', 'blank', 'aside', 'left', 'per_second', 'per_day', 'day', 'identity',
  'setter', 'set_back' }
local state = {}
local found = redis.call('HMGET', STATE, unpack(fields))
for at, field in ipairs(fields) do state[field] = found[at] end
for _, field in ipairs({ 'pointer', 'clock', 'total', 'absent', 'unclaimed_of', 'claimed', 'until', 'minute', 'oldest',
  'used', 'next', 'blank', 'aside', 'left', 'set_back' }) do
  state[field] = tonumber(state[field] or 0)
end

-- The day --------------------------------------------------------------------------------------------------------------
-- Three counts for each minute: "o" as the hosts know it from earlier epochs (the largest), "w" the sum of what each host
-- has sent by its own record, "n" booked in this epoch. A minute counts as max(o, w) + n.

local function counted(at)
  local values = redis.call('HMGET', MINUTES, 'o' .. at, 'w' .. at, 'n' .. at)
  return math.max(tonumber(values[1] or 0), tonumber(values[2] or 0)) + tonumber(values[3] or 0)
end

local function in_day(at)
  if arg.day == 'utc' then return math.floor(at / DAY) >= math.floor(minute / DAY) end
  return at > minute - DAY - 1 -- a minute leaves when all of it is a day old
end

-- Change one count; "kind" is o (the larger one holds), w or n (added).
local function book(kind, at, count)
  if count == 0 or not in_day(at) then return end
  at = math.min(at, minute + 1)
  local field, before = kind .. text(at), counted(text(at))
  if kind == 'o' then
    local old = tonumber(redis.call('HGET', MINUTES, field) or 0)
    if count > old then redis.call('HSET', MINUTES, field, text(count)) end
  elseif tonumber(redis.call('HINCRBY', MINUTES, field, text(count))) < 0 then
    redis.call('HSET', MINUTES, field, '0')
  end
  state.used = state.used + counted(text(at)) - before
  if state.oldest == 0 or at < state.oldest then state.oldest = at end
end

-- For each "minute:count" of a list.
local function each(list, call)
  for at, count in string.gmatch(list or '', '(%d+):(%d+)') do call(tonumber(at), tonumber(count)) end
end

local function drop_minute(at)
  state.used = state.used - counted(text(at))
  redis.call('HDEL', MINUTES, 'o' .. text(at), 'w' .. text(at), 'n' .. text(at))
end

local function roll_minutes()
  if state.minute == minute then return end
  if state.oldest > 0 and minute - state.oldest > 3 * DAY then
    redis.call('DEL', MINUTES)
    state.used, state.oldest = 0, minute
  end
  while state.oldest > 0 and state.oldest < minute and not in_day(state.oldest) do
    drop_minute(state.oldest)
    state.oldest = state.oldest + 1
  end
  state.minute = minute
end

-- Start number, nonce, number of the last report, number of the member, the epoch in which it has claimed; and the minute in
-- which it has left.
local identity = arg.member and redis.call('HGET', IDS, arg.member)

-- Members and promises -------------------------------------------------------------------------------------------------

local function promise_of(member) return tonumber(redis.call('HGET', LEDGER, member) or 0) end

-- What was promised in earlier epochs and is not claimed, as far as hosts have told: it may be used at any moment.
local function known_unclaimed()
  if now > state['until'] then return 0 end
  return math.max(0, state.unclaimed_of - state.claimed)
end

-- What is set aside of the rate. In the first seconds of an epoch it is all that is not claimed: a host knows only what
-- was promised when it was last answered, and the one that comes first may know of a part.
local function unclaimed()
  if now > state.blank then return known_unclaimed() end
  return math.max(known_unclaimed(), number('alone') - state.claimed)
end

-- What of the day is set aside for absent hosts. "left" is what was left when the first host of this epoch came.
local function aside()
  return state.aside + math.floor(known_unclaimed() * state.left / number('alone'))
end

-- What may have been handed out without being known: a host that comes first in a new epoch knows the day as it was a lease
-- ago at the earliest, if it shared the rate until then. Later ones know more.
local function not_known_yet()
  return now > state.blank and 0 or math.ceil(number('per_second') * number('lease') / 1e12)
end

-- "granted" holds for each member: all slots so far, the slots it is owed in thousandths, when it last asked, what of the day
-- is set aside for it while it is absent, and what was set aside in all when it was last answered.
local function account_of(member)
  local account = {}
  for part in string.gmatch(redis.call('HGET', GRANTED, member) or '', '%S+') do
    account[#account + 1] = tonumber(part)
  end
  return { account[1] or 0, account[2] or 0, account[3] or now, account[4] or 0, account[5] or 0 }
end

local function save_account(member, account)
  for at = 1, 5 do account[at] = text(account[at]) end
  redis.call('HSET', GRANTED, member, table.concat(account, ' '))
end

-- The member is no longer absent, or is forgotten: what was set aside of the day is free again.
local function free_aside(member)
  state.aside = math.max(0, state.aside - account_of(member)[4])
end

local function stop_waiting(member)
  for _, key in ipairs(WAITING) do redis.call('ZREM', key, member) end
  redis.call('ZREM', PACE, member)
end

-- Hosts whose lease has ended may send alone from now on: their promises come off the rate.
local function end_leases()
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', MEMBERS, '-inf', '(' .. text(now))) do
    local ended = redis.call('ZSCORE', MEMBERS, member)
    redis.call('ZREM', MEMBERS, member)
    redis.call('ZADD', ABSENT, ended, member)
    local promise, account = promise_of(member), account_of(member)
    state.absent = state.absent + promise
    -- By what the host knows as left: hosts that are cut off together do not know what is set aside for each other.
    account[4] = math.ceil(math.max(0, number('per_day') - state.used - account[5]) * promise / number('alone'))
    state.aside = state.aside + account[4]
    save_account(member, account)
    stop_waiting(member)
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', ABSENT, '-inf', '(' .. text(now - number('forget')))) do
    local promise = promise_of(member)
    free_aside(member)
    redis.call('ZREM', ABSENT, member)
    state.absent, state.total = state.absent - promise, state.total - promise
    redis.call('HDEL', LEDGER, member)
    redis.call('HDEL', IDS, member)
    redis.call('HDEL', NAMES, member)
    redis.call('HDEL', GRANTED, member)
  end
end

local function begin_epoch()
  local before = state.total + known_unclaimed()
  if state.epoch then
    -- The counts of the older state are what is known; bookings start over.
    local all = redis.call('HGETALL', MINUTES)
    local sums = {}
    for index = 1, #all, 2 do sums[string.sub(all[index], 2)] = true end
    for minute_text, _ in pairs(sums) do
      local count = counted(minute_text)
      redis.call('HDEL', MINUTES, 'w' .. minute_text, 'n' .. minute_text)
      redis.call('HSET', MINUTES, 'o' .. minute_text, text(count))
    end
  end
  redis.call('DEL', MEMBERS, ABSENT, LEDGER, PACE, WAITING[1], WAITING[2], WAITING[3])
  state.epoch, state.run = text(now), arg.run
  state.pointer = math.max(now + number('guard'), math.min(state.pointer, now + number('cap') + number('guard')))
  state.total, state.absent, state.claimed, state.aside, state.left = 0, 0, 0, 0, 0
  -- Hosts that are cut off may be sending alone, or know of others that are: who comes within BLANK says so.
  state.unclaimed_of, state['until'], state.blank = before, now + number('forget'), now + BLANK
end

-- The clock was set back: everything that lies in the old future moves with it.
local function clock_went_back()
  local back = state.clock - now
  state.pointer = state.pointer - back
  -- How old each lease is is not known any more, so all end. One that ends too early is begun again by the next call of its
  -- host; one that ended too late would hand out the whole rate while its host sends alone.
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', MEMBERS, '-inf', '+inf')) do
    redis.call('ZADD', MEMBERS, text(now - 1), member)
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', ABSENT, '(' .. text(now), '+inf')) do
    redis.call('ZADD', ABSENT, text(now), member)
  end
  -- Once only, also if this call is refused: the next one must not move everything again.
  state.clock, state.set_back = now, now
  redis.call('DEL', WAITING[1], WAITING[2], WAITING[3])
  -- What was over must not begin again.
  state['until'], state.blank = state['until'] - back, state.blank - back
  local moved = 0
  for at = minute + 2, math.min(state.minute + 1, minute + DAY) do
    moved = moved + counted(text(at))
    drop_minute(at)
  end
  state.minute = minute
  book('n', minute, moved)
end

-- Return the limit in which the caller differs from the fleet, or nil.
local function first_difference()
  for _, what in ipairs({ 'per_second', 'per_day', 'day', 'identity' }) do
    if state[what] and state[what] ~= arg[what] then return what end
  end
end

-- Return how many other hosts are connected. For the time of a lease those count whose lease ended only because the clock was
-- set back: a host that was refused until then could call before them, and would set its own limits.
local function connected_others()
  local count = redis.call('ZCARD', MEMBERS) - (redis.call('ZSCORE', MEMBERS, arg.member) and 1 or 0)
  if now > state.set_back + number('lease') then return count end
  local ended = text(state.set_back - 1)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', ABSENT, ended, ended)) do
    if member ~= arg.member then count = count + 1 end
  end
  return count
end

-- The first call of a member in this epoch: it brings what it believes to have, and what it knows of the day.
local function claim()
  if arg.epoch ~= '' and arg.epoch ~= state.epoch then
    local before = now > state['until'] and state.claimed or state.unclaimed_of
    state.unclaimed_of, state['until'] = math.max(before, number('known')), now + number('forget')
    state.claimed = state.claimed + number('promise')
  end
  each(arg.history, function(at, count) book('o', at, count) end)
  each(arg.own, function(at, count) book('w', at, count) end)
  if state.left == 0 then state.left = math.max(0, number('per_day') - state.used) end
end

-- A member that leaves may return in this epoch. What it has sent is booked; its record must not be added to that. Its entry
-- says so until those minutes have left the day, with start 0, so that a restored outbox is not taken for an older one.
local function keep_claim()
  local known = redis.call('HGETALL', IDS)
  for index = 1, #known, 2 do
    local left = string.match(known[index + 1], '^0 left .* (%d+)$')
    if left and tonumber(left) < minute - DAY - 2 then redis.call('HDEL', IDS, known[index]) end
  end
  local member_number, claimed_in = string.match(identity or '', '^%d+ %S+ %d+ (%d+) (%d+)')
  if claimed_in == state.epoch then
    redis.call('HSET', IDS, arg.member, table.concat({ '0 left 0', member_number, claimed_in, text(minute) }, ' '))
  else
    redis.call('HDEL', IDS, arg.member)
  end
end

-- The first call after a return in the same epoch: what the host has sent by itself since it left. Its record may be dated a
-- minute later than the sends, so the last two minutes before it left may count twice, but nothing is left out.
local function claim_since(left)
  each(arg.own, function(at, count)
    if at >= left then book('w', at, count) end
  end)
end

-- Return what this host may send alone from now on.
local function update_promise()
  local member, held = arg.member, number('promise')
  local before = promise_of(member)
  if redis.call('ZREM', ABSENT, member) == 1 then
    state.absent = state.absent - before
    free_aside(member)
  end
  local others = state.total - before
  local count = redis.call('HLEN', LEDGER) + (redis.call('HGET', LEDGER, member) and 0 or 1)
  local free = number('alone') - unclaimed() - others
  local promise = math.max(0, math.min(math.floor(number('alone') / count), free))
  local after = math.max(held, promise)
  redis.call('HSET', LEDGER, member, text(after))
  state.total = others + after
  return promise
end

-- Slots ----------------------------------------------------------------------------------------------------------------

local function rivals(class)
  redis.call('ZREMRANGEBYSCORE', WAITING[class], '-inf', text(now))
  local count = redis.call('ZCARD', WAITING[class])
  return count - (redis.call('ZSCORE', WAITING[class], arg.member) and 1 or 0)
end

local function rate_now()
  if number('pace') < 1000 then
    redis.call('ZADD', PACE, arg.pace, arg.member)
  else
    redis.call('ZREM', PACE, arg.member)
  end
  local lowest = redis.call('ZRANGEBYSCORE', PACE, '-inf', '+inf', 'WITHSCORES', 'LIMIT', '0', '1')
  local rate = math.floor(number('per_second') * tonumber(lowest[2] or 1000) / 1000)
  if arg.spread == '1' then
    local even = number('per_day') * 1000000 / 86400
    if arg.day == 'utc' then
      even = math.max(1, number('per_day') - state.used) * 1000000 / (60 * (DAY - minute % DAY))
    end
    rate = math.min(rate, math.floor(even))
  end
  -- One and a half a second less: the turns of hosts that are alone lie at phases of their own, and some seconds hold a few more.
  local gone = state.absent + unclaimed()
  return rate - gone - math.min(gone, 1500000)
end

-- A host that asks at unlucky moments holds fewer slots at a time than the others; what it missed is owed to it.
local account = account_of(arg.member or '')

local function settle_account(count, rate, rivals_now, waited)
  local owed = 0
  if waited then
    owed = account[2] + math.floor(rate * math.min(now - account[3], 1000000) / 1e9 / (rivals_now + 1)) - 1000 * count
    owed = math.max(-2000, math.min(owed, 2000))
  end
  save_account(arg.member, { account[1] + count, owed, now, 0, aside() })
end

-- Return how many slots this host gets, whether only high events may use them, and how many rivals wait by class.
local function share(rate)
  local others = { rivals(1), rivals(2), rivals(3) }
  local wanted = { number('high'), number('normal'), number('low') }
  local bonus = math.max(0, math.floor(account[2] / 1000))
  local function portion(class)
    return math.max(1, math.floor(rate * number('horizon') / 1e12 / (others[class] + 1))) + bonus
  end
  local allowed = math.min(wanted[1], portion(1))
  if others[1] == 0 then
    allowed = math.max(allowed, math.min(wanted[1] + wanted[2], portion(2)))
    if others[2] == 0 and wanted[3] > 0 then
      allowed = math.max(allowed, math.min(wanted[1] + wanted[2] + wanted[3], portion(3)))
    end
  end
  local held = number('held')
  local count = math.max(0, allowed - held)
  local kept = aside() + not_known_yet()
  local left = number('per_day') - state.used - kept
  -- Absent hosts keep the reserve for high events, too: of what is set aside for them, normal ones may use their part only.
  local left_normal = number('normal_day') - state.used - math.ceil(kept * number('normal_day') / number('per_day'))
  local high_only = false
  if count > left_normal then
    local for_high = math.min(count, left, math.max(0, wanted[1] - held))
    high_only = for_high > left_normal
    count = math.max(0, left_normal, for_high)
  end
  return count, high_only, others
end

-- Book "count" slots; return the first one, the step, the count that fits, and the minute in which they are booked.
local function hand_out(count, rate)
  local first = math.max(state.pointer, now + LEAD)
  if rate < 1 or count < 1 then return first, 0, 0, minute end
  local step = math.ceil(1e12 / rate)
  count = math.min(count, math.floor((now + number('cap') - first) / step) + 1)
  if count < 1 then return first, step, 0, minute end
  if arg.day == 'utc' then
    local midnight = (math.floor(minute / DAY) + 1) * DAY * 60000000
    if first < midnight and first + (count - 1) * step > midnight - MIDNIGHT then
      count = math.floor((midnight - MIDNIGHT - first) / step) + 1
      if count < 1 then
        state.pointer = midnight
        return midnight, step, 0, minute
      end
    end
  end
  state.pointer = first + count * step
  -- Dated by the last of them: a send must never count as older than it is.
  local at = math.floor((first + (count - 1) * step + 1000000) / 60000000)
  if arg.day == 'utc' then at = math.floor((first + (count - 1) * step) / 60000000) end
  book('n', at, count)
  return first, step, count, math.min(at, minute + 1)
end

local function wait_for(count)
  local wanted, held = { number('high'), number('normal'), number('low') }, number('held') + count
  for class, key in ipairs(WAITING) do
    if wanted[class] > held then
      redis.call('ZADD', key, text(now + WAITS[class]), arg.member)
    else
      redis.call('ZREM', key, arg.member)
    end
    held = math.max(0, held - wanted[class])
  end
end

local function save()
  local pairs_out = {}
  for _, field in ipairs(fields) do
    local value = state[field]
    if type(value) == 'number' then value = text(value) end
    if value then
      pairs_out[#pairs_out + 1] = field
      pairs_out[#pairs_out + 1] = value
    end
  end
  redis.call('HSET', STATE, unpack(pairs_out))
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, KEEP_MS) end
end

-- The order of work ------------------------------------------------------------------------------------------------------

if arg.op == 'look' then
  local seen = { 'ok', text(now), state.epoch or '', text(state.pointer), text(state.total), text(state.absent) }
  for _, key in ipairs({ MEMBERS, ABSENT }) do
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', '+inf')) do
      seen[#seen + 1] = member
      seen[#seen + 1] = redis.call('HGET', NAMES, member) or ''
      seen[#seen + 1] = redis.call('ZSCORE', key, member)
      seen[#seen + 1] = redis.call('HGET', LEDGER, member) or '0'
      seen[#seen + 1] = string.match(redis.call('HGET', GRANTED, member) or '0', '%d+')
    end
  end
  return seen
end

if now < number('from') or now > number('till') then return { 'late', text(now) } end

if identity then
  local start, nonce = string.match(identity, '^(%d+) (%S+)')
  if tonumber(start) > number('start') then return { 'older', text(now), redis.call('HGET', NAMES, arg.member) or '' } end
  if tonumber(start) == number('start') and nonce ~= arg.nonce then
    return { 'clone', text(now), redis.call('HGET', NAMES, arg.member) or '' }
  end
end

if (not state.epoch or state.run ~= arg.run or state.epoch ~= arg.epoch) and arg.op == 'ask' then
  return { 'join', text(now) }
end

-- Limits and product must be the same on all hosts that are connected now. The time that has passed counts by those of the
-- fleet: a host with another day would drop minutes, and set aside another part of it for absent hosts.
local own = arg
local different = state.epoch and state.identity and first_difference()
if different then
  arg = {}
  for name, value in pairs(own) do arg[name] = value end
  arg.per_second, arg.per_day, arg.day = state.per_second, state.per_day, state.day
  arg.alone = math.floor(math.min(number('per_second'), number('per_day') * 1000000 / 86400))
end
if state.epoch and state.clock > now + 1000 then clock_went_back() end
if state.epoch then roll_minutes() end
end_leases()
local present = connected_others()
if not different or present == 0 then
  arg = own
elseif arg.op ~= 'leave' then -- what a host gives back at its end is free at once, whatever its limits are by then
  save()
  return { 'differ', text(now), different, state[different], own[different], state.setter or '' }
end

if not state.epoch or state.run ~= arg.run then begin_epoch() end
state.clock = now
roll_minutes()
if present == 0 or not state.identity then
  state.per_second, state.per_day, state.day = arg.per_second, arg.per_day, arg.day
  state.identity, state.setter = arg.identity, arg.host
end

if arg.op == 'leave' then
  local promise = promise_of(arg.member)
  if redis.call('ZREM', ABSENT, arg.member) == 1 then
    state.absent = state.absent - promise
    free_aside(arg.member)
  end
  each(arg.returned, function(at, count) book('n', at, -count) end)
  each(arg.lone, function(at, count) book('n', at, count) end)
  state.total = state.total - promise
  redis.call('ZREM', MEMBERS, arg.member)
  for _, key in ipairs({ LEDGER, NAMES, GRANTED }) do redis.call('HDEL', key, arg.member) end
  keep_claim()
  stop_waiting(arg.member)
  save()
  return { 'ok', text(now) }
end

local own_start, own_nonce, lone_id, member_number, claimed_in
if identity then
  own_start, own_nonce, lone_id, member_number, claimed_in = string.match(identity, '^(%d+) (%S+) (%d+) (%d+) (%d+)')
end
if not member_number then
  member_number = text(state.next)
  state.next = state.next + 1
end
if own_start ~= arg.start then lone_id = '0' end
if claimed_in ~= state.epoch then
  claim()
elseif own_nonce == 'left' then
  claim_since(tonumber(string.match(identity, '(%d+)$')))
end
if number('lone_id') > tonumber(lone_id or 0) then
  each(arg.lone, function(at, count) book('n', at, count) end)
  lone_id = arg.lone_id
end
each(arg.returned, function(at, count) book('n', at, -count) end)
redis.call('HSET', IDS, arg.member, table.concat({ arg.start, arg.nonce, lone_id or '0', member_number, state.epoch }, ' '))
redis.call('HSET', NAMES, arg.member, arg.host)

local promise = update_promise()
redis.call('ZADD', MEMBERS, text(now + number('lease')), arg.member)
local rate = rate_now()
local wanted_count, high_only, others = share(rate)
local first, step, count, booked = hand_out(wanted_count, rate)
settle_account(count, rate, others[1] + others[2], number('high') + number('normal') + number('low') > number('held') + count)
wait_for(count)
save()

local history = ''
if arg.op == 'join' then
  local parts = {}
  for at = math.max(state.oldest, minute - DAY), minute + 1 do
    local value = counted(text(at))
    if value > 0 then parts[#parts + 1] = text(at) .. ':' .. text(value) end
  end
  history = table.concat(parts, ' ')
else
  history = text(minute - 1) .. ':' .. text(counted(text(minute - 1))) .. ' ' .. text(minute) .. ':' ..
    text(counted(text(minute))) .. ' ' .. text(minute + 1) .. ':' .. text(counted(text(minute + 1)))
end
return { 'ok', text(now), state.epoch, text(first), text(step), text(count), high_only and '1' or '0', text(booked),
  text(promise), member_number, text(state.total + known_unclaimed()), text(redis.call('ZCARD', MEMBERS)),
  text(redis.call('ZCARD', ABSENT)), text(others[1]), text(others[2]), text(state.used + aside()), text(math.max(0, rate)),
  text(state.absent + unclaimed()), history }
