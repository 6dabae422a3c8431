-- KEYS: value, stream
-- ARGV: 1 generation, 2 epoch, 3 body ('' leaves the value as it is, '-' deletes it, '=' deletes it
--       and leaves the event there for an hour, so that nothing older comes back), 4 when it expires (ms since 1970,
--       '' never), 5 seq ('' leaves the stream as it is), 6 event ('' tells nobody, '=' is the body), 7 channel,
--       8 entries that the stream keeps, 9 '1' to overwrite what is newer
-- Gives: what came of it (0 written, 1 an epoch of this generation stands that is newer, or is this one and committed
--        where the event is not; of an event that is not committed nobody is told then; 2 refused: a newer generation),
--        the generation and epoch that stand if they are newer, what of another type was in the way (1 the value, 2 the
--        stream), or whether the stream was not there (4), and the stream's last seq if it is not before this one.
local generation, epoch = tonumber(ARGV[1]), tonumber(ARGV[2])
local body, seq, event = ARGV[3], ARGV[5], ARGV[6]
if event == '=' then event = body end
local result, healed, last, g, e = 0, 0, 0, 0, 0
if body ~= '' then
  local found = redis.pcall('GET', KEYS[1])
  if type(found) == 'table' then
    if string.sub(found.err, 1, 9) ~= 'WRONGTYPE' then return found end
    redis.call('UNLINK', KEYS[1])
    found, healed = false, 1
  end
  if found and ARGV[9] ~= '1' then
    local fs, fe, fg = string.match(found, '^{"seq":(%w+),"epoch":(%d+),"generation":(%d+)')
    if fg then
      fg, fe = tonumber(fg), tonumber(fe)
      if fg > generation then return { 2, fg, fe, healed, 0 } end
      if fg == generation and (fe > epoch or fe == epoch and fs ~= 'null') then
        local early = string.sub(event, 1, 11) == '{"seq":null'
        if fe > epoch or early then result, g, e = 1, fg, fe end
        if early then event = '' end
      end
    end
  end
  if result == 0 and body == '-' then
    redis.call('UNLINK', KEYS[1])
  elseif result == 0 and body == '=' then
    redis.call('SET', KEYS[1], event, 'PX', 3600000)
  elseif result == 0 and ARGV[4] ~= '' then
    redis.call('SET', KEYS[1], body, 'PXAT', ARGV[4])
  elseif result == 0 then
    redis.call('SET', KEYS[1], body)
  end
end
if seq ~= '' then
  local kind = redis.call('TYPE', KEYS[2]).ok
  if kind ~= 'stream' then
    if kind ~= 'none' then
      redis.call('UNLINK', KEYS[2])
      healed = healed + 2
    end
    healed = healed + 4
  end
  local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', ARGV[8], seq .. '-0', 'body', event)
  if type(added) == 'table' and added.err then
    if not string.find(added.err, 'equal or smaller', 1, true) then return added end
    local info = redis.call('XINFO', 'STREAM', KEYS[2])
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then last = tonumber(string.match(info[i + 1], '^%d+')) end
    end
    event = ''
  end
end
if event ~= '' then redis.call('PUBLISH', ARGV[7], event) end
return { result, g, e, healed, last }
