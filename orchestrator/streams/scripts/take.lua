-- Deliver new entries from the most urgent streams first, never more than each budget allows.
-- One XREADGROUP over many streams cannot do that: its COUNT is per stream, and it mixes priorities.
--
-- KEYS: streams, most urgent first.
-- ARGV: group, consumer, number of budgets, each budget, then for each stream the number of its budget.
-- Reply: {"<stream number> <id> <kind><value>", ...}, "<id> <id> ..."
--   kind: m (message), j (job), ? (neither: one field named m or j is expected).
--   The ids, one a stream: after which entry to wait for news; "-" where the budget ran out, so that more may be there.
local group, consumer, budgets = ARGV[1], ARGV[2], tonumber(ARGV[3])
local left = {}
for b = 1, budgets do left[b] = tonumber(ARGV[3 + b]) end

local function read(key, count)
  local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', key, '>')
  if reply and reply.err then
    if not string.find(reply.err, 'NOGROUP', 1, true) then return reply end
    redis.call('XGROUP', 'CREATE', key, group, '0')  -- flushed, or never read: nothing in it was delivered
    reply = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', key, '>')
  end
  return reply and reply[1][2] or {}
end

local function last_delivered(key)
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local id, ours
    for i = 1, #info, 2 do
      if info[i] == 'name' then ours = info[i + 1] == group end
      if info[i] == 'last-delivered-id' then id = info[i + 1] end
    end
    if ours then return id end
  end
  return '0-0'
end

local taken, after = {}, {}
for k, key in ipairs(KEYS) do
  local b = tonumber(ARGV[3 + budgets + k])
  local length = redis.call('XLEN', key)
  if left[b] > 0 and length > 0 then
    local entries = read(key, left[b])
    if entries.err then return entries end
    for _, entry in ipairs(entries) do
      local fields, kind, value = entry[2], '?', ''
      if #fields == 2 and (fields[1] == 'm' or fields[1] == 'j') then kind, value = fields[1], fields[2] end
      taken[#taken + 1] = k .. ' ' .. entry[1] .. ' ' .. kind .. value
    end
    left[b] = left[b] - #entries
  end
end
for k, key in ipairs(KEYS) do
  if left[tonumber(ARGV[3 + budgets + k])] <= 0 then
    after[k] = '-'
  elseif redis.call('XLEN', key) == 0 then
    after[k] = '0-0'
  else
    after[k] = last_delivered(key)
  end
end
return {taken, table.concat(after, ' ')}
